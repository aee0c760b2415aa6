"""All trainings of a run by an executor: in their order here, side by side on a cluster.

A training that runs elsewhere is the same call in a scratch folder there. Its files, metrics and
row come back, and this process, the only one that writes, puts them into the workdir.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
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
  open_: dict[int, list[Any]] = {}  # rows, None where one is not there yet
  results: dict[str, Row] = {}
  start = _starter(run, executor)

  def advance(number: int, rows: Any) -> None:
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
    key = ledger_lib.key_of(trainings.describe(run, asked.name, method, asked.seed, *sets))
    if key in run.rows:
      return queue.done(trainings.train_once(run, asked))
    if not sent:
      sent.append(share(_Setting(run, ("train", "validation", "trainval"))))
    run.progress.begin()
    training = executor.submit(train, sent[0], asked)
    return queue.then(training, lambda back: _keep_training(run, what, back))

  return start


def test_all(
  run: trainings.Run, chosen: Mapping[str, Row], executor: futures.Executor
) -> dict[str, dict[str, Row]]:
  """Reads the test sets with every chosen training, once.

  Args:
    run: after its trainings.
    chosen: method -> what its plan returned.
    executor: runs the reading.

  Returns:
    Method -> key of a training -> test set -> scores and the path of the logits.
  """
  scores: dict[str, dict[str, Row]] = {name: {} for name in chosen}
  pending: collections.deque[tuple[str, Row]] = collections.deque()
  for name, result in chosen.items():
    own: dict[str, Row] = {}
    for row in result["chosen"]:  # seeds of a method without chance share a training
      own.setdefault(row["key"], row)
    pending.extend((name, row) for row in own.values())
  share = getattr(executor, "share", None)
  sent = share(_Setting(run, ("tests",))) if share else None

  def start(job: tuple[str, Row]) -> futures.Future:
    name, row = job
    if sent is None:
      return executor.submit(trainings.test_once, run, name, row)
    task = _files(run.workdir, [f"tasks/{row['key']}"])
    return queue.then(
      executor.submit(test, sent, name, row, task), lambda back: _keep_files(run, back)
    )

  def ended(job: tuple[str, Row], found: Row) -> None:
    scores[job[0]][job[1]["key"]] = found

  queue.drain(pending, start, queue.width(executor), ended)
  return scores


@dataclasses.dataclass(frozen=True)
class _Setting:
  """What all calls for a run share: its network and some of its data sets, by field."""

  run: trainings.Run
  sets: tuple[str, ...]

  def portable(self) -> "_Setting":
    """The same for another machine: arrays of numpy, no device, no file, no other data set."""
    run = self.run
    sets: dict[str, Any] = {"train": None, "validation": None, "trainval": None, "tests": ()}
    sets |= {"writer": None, "progress": None}
    for name in self.sets:
      own = getattr(run, name)
      sets[name] = tuple(t.in_memory() for t in own) if name == "tests" else own and own.in_memory()
    pretrained = run.pretrained._replace(variables=jax.device_get(run.pretrained.variables))
    sent = dataclasses.replace(
      run, **sets, rows={}, pretrained=pretrained, engine=run.engine.portable(),
      workdir=pathlib.Path(),
    )  # fmt: skip
    sent.__dict__.update(network=run.network, inputs=run.inputs)  # digests, taken once
    return _Setting(sent, self.sets)


@dataclasses.dataclass(frozen=True)
class Back:
  """What a call elsewhere gives back.

  Attributes:
    result: the training's row for the ledger, or the scores.
    files: path below the workdir -> content.
    metrics: rows of metrics.jsonl.
    said: lines about it, such as that it diverged.
  """

  result: Row
  files: dict[str, bytes]
  metrics: tuple[Row, ...] = ()
  said: tuple[str, ...] = ()


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


@contextlib.contextmanager
def _scratch(shared: here.Shared) -> Iterator[trainings.Run]:
  """The run in an empty folder of this process."""
  run = shared.made(_run_of_place)
  with tempfile.TemporaryDirectory(prefix="training-") as folder:
    run.workdir = pathlib.Path(folder)
    yield run


def train(shared: here.Shared, asked: trainings.Asked) -> Back:
  """One training; what an executor elsewhere calls."""
  said = io.StringIO()
  with _scratch(shared) as run:
    run.rows, run.ledger = {}, ledger_lib.Ledger(run.workdir / "ledger.jsonl")
    run.progress = _Quiet(1, said)
    run.writer = writers.MetricWriter(run.workdir, tensorboard=False)
    try:
      row = trainings.train_once(run, asked)
    finally:
      run.writer.close()
    lines = (run.workdir / _METRICS).read_bytes().splitlines()
    left = _files(run.workdir, _FOLDERS)
  return Back(row, left, tuple(map(strict_json.loads, lines)), tuple(said.getvalue().splitlines()))


def test(shared: here.Shared, name: str, row: Row, task: Mapping[str, bytes]) -> Back:
  """The test sets read with one training, whose leaves are `task`'s files."""
  with _scratch(shared) as run:
    for path, content in task.items():
      files.write_atomically(run.workdir / path, content)
    scores = trainings.test_once(run, name, row)
    return Back(scores, _files(run.workdir, ["logits"]))


def _files(folder: pathlib.Path, tops: Sequence[str]) -> dict[str, bytes]:
  """Path below `folder` -> content, of all files below `tops`."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for top in tops
    for path in (folder / top).rglob("*")
    if path.is_file()
  }


def _keep_files(run: trainings.Run, back: Back) -> Row:
  for name, content in back.files.items():
    files.write_atomically(run.workdir / name, content)
  return back.result


def _keep_training(run: trainings.Run, what: str, back: Back) -> Row:
  """Writes what came back, the row last, which makes the training finished."""
  row = _keep_files(run, back)
  for line in back.metrics:
    scalars = {k: v for k, v in line.items() if k not in ("step", "training")}
    run.writer.write(line["step"], line["training"], scalars)
  run.ledger.append(row)
  run.rows[row["key"]] = row
  for epoch in row["history"]:
    run.progress.epoch(what, epoch)
  for text in back.said:
    run.progress.line(", ".join(filter(None, [text, run.progress.left()])))
  return row
