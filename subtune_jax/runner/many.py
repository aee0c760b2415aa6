"""All trainings of a run by an executor: in their order here, side by side on a cluster.

A training that runs elsewhere is the same call in a scratch folder there. Its files, metrics and
row come back, and this process, the only one that writes, puts them into the workdir.
"""

import collections
from collections.abc import Mapping
from concurrent import futures
import dataclasses
import io
import pathlib
import tempfile
from typing import Any

import jax

from subtune_jax import files, strict_json
from subtune_jax.models import compile_cache
from subtune_jax.runner import choice, trainings, writers
from subtune_jax.runner import progress as progress_lib
from subtune_jax.training import ledger as ledger_lib
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.workers import here, queue

Row = dict[str, Any]
_METRICS = "metrics.jsonl"
_FOLDERS = ("logits", "tasks")  # what a training leaves beside its row


def train_all(
  run: trainings.Run, plans: Mapping[str, choice.Plan], executor: futures.Executor
) -> dict[str, Row]:
  """Runs what the plans ask for; of what waits, an earlier plan's trainings start first.

  Args:
    run: takes the rows.
    plans: by name.
    executor: runs the trainings.

  Returns:
    What each plan returned.

  Raises:
    ValueError: of a plan, when it meets what it raises for.
  """
  order = list(plans)
  pending: collections.deque[tuple[int, int, trainings.Asked]] = collections.deque()
  open_: dict[int, list[Row | None]] = {}
  results: dict[str, Row] = {}
  start = _starter(run, executor)

  def advance(number: int, rows: list[Row] | None) -> None:
    """Asks a plan on, until it waits for a training or is at its end."""
    asked: list[trainings.Asked] = []
    while not asked:
      try:
        asked = plans[order[number]].send(rows)
      except StopIteration as end:
        results[order[number]] = end.value
        return
      rows = []
    open_[number] = [None] * len(asked)
    new = [(number, place, one) for place, one in enumerate(asked)]
    waiting = sorted([*pending, *new], key=lambda job: job[:2])
    pending.clear()
    pending.extend(waiting)

  def ended(job: tuple[int, int, trainings.Asked], row: Row) -> None:
    number, place, _ = job
    rows = open_[number]
    rows[place] = row
    if None not in rows:
      advance(number, rows)

  for number in range(len(order)):
    advance(number, None)
  queue.drain(pending, lambda job: start(job[2]), queue.width(executor), ended)
  return {name: results[name] for name in order}


def _starter(run: trainings.Run, executor: futures.Executor) -> Any:
  """What starts a training: asked -> the future of its row."""
  share = getattr(executor, "share", None)
  if share is None:
    return lambda asked: executor.submit(trainings.train_once, run, asked)
  sent: list[Any] = []

  def start(asked: trainings.Asked) -> futures.Future:
    method, sets, what = trainings.described(run, asked)
    key = ledger_lib.key_of(
      trainings.describe(run, asked.name, method, asked.seed, *sets)
    )  # fmt: skip
    if key in run.rows:
      return queue.done(trainings.train_once(run, asked))
    if not sent:
      sent.append(share(_Setting(run)))
    return queue.then(
      executor.submit(train, sent[0], asked), lambda back: _keep(run, what, back)
    )  # fmt: skip

  return start


@dataclasses.dataclass(frozen=True)
class _Setting:
  """What all trainings of a run share."""

  run: trainings.Run

  def portable(self) -> "_Setting":
    """The same for another machine: arrays of numpy, no device, no file, no test image."""
    run = self.run
    sets = {name: getattr(run, name) for name in ("train", "validation", "trainval")}
    pretrained = run.pretrained._replace(variables=jax.device_get(run.pretrained.variables))
    sent = dataclasses.replace(
      run, **{name: own and own.in_memory() for name, own in sets.items()}, tests=(), rows={},
      pretrained=pretrained, engine=dataclasses.replace(run.engine, mesh=None), writer=None,
      progress=None, workdir=pathlib.Path(),
    )  # fmt: skip
    sent.__dict__.update(network=run.network, inputs=run.inputs)  # digests, taken once
    return _Setting(sent)


@dataclasses.dataclass(frozen=True)
class Back:
  """What a training elsewhere gives back.

  Attributes:
    row: for the ledger.
    files: path below the workdir -> content.
    metrics: rows of metrics.jsonl.
    said: lines about it, such as that it diverged.
  """

  row: Row
  files: dict[str, bytes]
  metrics: list[Row]
  said: list[str]


class _Quiet(progress_lib.Progress):
  """Knows of one training alone, so nothing of the time that is left."""

  def left(self) -> str:
    """Nothing."""
    return ""


def _run_of_place(setting: _Setting) -> trainings.Run:
  """The run on the devices of this process."""
  compile_cache.enable()
  engine = dataclasses.replace(setting.run.engine, mesh=mesh_lib.make_mesh())
  run = dataclasses.replace(setting.run, engine=engine)
  run.__dict__.update(network=setting.run.network, inputs=setting.run.inputs)
  return run


def train(shared: here.Shared, asked: trainings.Asked) -> Back:
  """One training in a scratch folder of this process; what an executor elsewhere calls."""
  run, said = shared.made(_run_of_place), io.StringIO()
  with tempfile.TemporaryDirectory(prefix="training-") as scratch:
    run.workdir = folder = pathlib.Path(scratch)
    run.rows, run.ledger = {}, ledger_lib.Ledger(folder / "ledger.jsonl")
    run.progress = _Quiet(1, said)
    run.writer = writers.MetricWriter(folder, tensorboard=False)
    try:
      row = trainings.train_once(run, asked)
    finally:
      run.writer.close()
    metrics = [strict_json.loads(line) for line in (folder / _METRICS).read_bytes().splitlines()]
    left = {
      str(path.relative_to(folder)): path.read_bytes()
      for top in _FOLDERS
      for path in (folder / top).rglob("*")
      if path.is_file()
    }
  return Back(row, left, metrics, said.getvalue().splitlines())


def _keep(run: trainings.Run, what: str, back: Back) -> Row:
  """Writes what came back, the row last, which makes the training finished."""
  for name, content in back.files.items():
    files.write_atomically(run.workdir / name, content)
  for line in back.metrics:
    scalars = {k: v for k, v in line.items() if k not in ("step", "training")}
    run.writer.write(line["step"], line["training"], scalars)
  run.ledger.append(back.row)
  run.rows[back.row["key"]] = back.row
  for epoch in back.row["history"]:
    run.progress.epoch(what, epoch)
  for line in back.said:
    run.progress.line(", ".join(filter(None, [line, run.progress.left()])))
  return back.row
