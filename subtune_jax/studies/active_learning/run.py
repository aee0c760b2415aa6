"""Rounds of training, asking for labels and training again, by several rules of acquisition.

Every learner, rule and seed begins with the same random labels of that seed. A round trains from
the pretrained weights, scores the images without a label as they are (no augmentation), and asks
for as many labels as are missing to the next total. After the last round nothing is asked for.

WORKDIR/rounds/LEARNER/RULE/seed0-100.npz holds what a round found; one that is there is not
repeated, and a killed training goes on from its checkpoint.
"""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
import shutil
import sys
from typing import Any, TextIO

import numpy as np

from subtune_jax import acquisition, data, files, methods
from subtune_jax.runner import (
  choice,
  executors,
  many,
  network,
  provenance,
  recipes,
  trainings,
  writers,
)
from subtune_jax.runner import progress as progress_lib
from subtune_jax.runner import workdir as workdir_lib
from subtune_jax.studies import fields, publish
from subtune_jax.studies.active_learning import config as own_config
from subtune_jax.studies.active_learning import page, saved
from subtune_jax.studies.active_learning import record as own_record
from subtune_jax.studies.compare import run as compare
from subtune_jax.training import evaluate, export

Row = dict[str, Any]
ROUNDS = "rounds"
_ARRAYS = ("inputs", "labelled", "right", "asked")


def run(
  config: Any, workdir: str | os.PathLike, *, command: str = "", stream: TextIO | None = None
) -> Row:
  """Runs the study, or goes on with one that was killed.

  Args:
    config: from `config.default()`.
    workdir: where everything is written.
    command: how the run was started, for the report.
    stream: where progress and the tables go; standard output by default.

  Returns:
    The record, as written to WORKDIR/results.json.

  Raises:
    ValueError: a config that makes no sense, a workdir of another config, bad weights or data.
  """
  state = _start(config, pathlib.Path(workdir), stream or sys.stdout)
  rounds = {}
  for name in config.methods:
    for seed in config.seeds:
      for rule in config.rules:
        rounds[name, rule, seed] = _rounds(state, name, rule, seed)
      _forget(state)
  state.writer.close()
  state.progress.close()
  record = _record(state, rounds, command)
  workdir_lib.write_json(state.workdir / fields.RESULTS, record)
  publish.publish(page.report(own_record.load(state.workdir)), state.workdir, state.progress.stream)
  return record


def _start(config: Any, workdir: pathlib.Path, stream: TextIO) -> trainings.Run:
  """Checks everything and enters the workdir; nothing is trained yet."""
  own_config.check(config)
  state, _ = compare.look(config, workdir, stream)
  pool = state.train
  own_config.check_pool(config.totals, len(pool), pool.name)
  state.workdir, entered = workdir_lib.enter(workdir, config)
  state.writer = writers.MetricWriter(workdir, tensorboard=config.tensorboard)
  each = len(config.seeds) * len(config.rules) * len(config.totals)
  total = each * sum(_epochs(state, name) for name in config.methods)
  state.progress = progress_lib.Progress(total, stream)
  state.progress.line(
    f"{config.name}: {', '.join(config.methods)} by {', '.join(config.rules)} on {pool.name}, "
    f"{len(pool)} images without a label, {', '.join(map(str, config.totals))} labels; results go "
    f"to {workdir}"
  )
  if entered:
    done = len(list((workdir / ROUNDS).glob("*/*/*.npz")))
    state.progress.line(f"resuming: rounds that are finished and will not be repeated: {done}")
  return state


def _epochs(state: trainings.Run, name: str) -> int:
  """Epochs of all trainings of a round."""
  rates = recipes.learning_rates(state.config, name)
  return len(rates) * trainings.num_epochs(trainings.stages_of(state, name, rates[0]))


def _rounds(state: trainings.Run, name: str, rule: str, seed: int) -> list[Mapping[str, Any]]:
  """What was found at each total by one learner, rule and seed."""
  totals = tuple(state.config.totals)
  order = np.random.default_rng(seed).permutation(len(state.train))
  labelled, found = np.sort(order[: totals[0]]), []
  for number, total in enumerate(totals):
    path = state.workdir / ROUNDS / name / rule / f"seed{seed}-{total}.npz"
    more = totals[number + 1] - total if number + 1 < len(totals) else 0
    own = _finished(state, path, labelled)
    if own is None:
      own = _round(state, name, rule, seed, labelled, more, number)
      files.write_npz(path, own)
    else:
      state.progress.skip(_epochs(state, name))
    found.append(own)
    labelled = np.sort(np.concatenate([labelled, own["asked"]]))
  last = found[-1]["right"].mean()
  state.progress.line(f"{name}, {rule}, seed {seed}: {last:.3f} with {totals[-1]} labels")
  return found


def _finished(state: trainings.Run, path: pathlib.Path, labelled: np.ndarray) -> Row | None:
  """A round of an earlier start, if it had the same labels, images and weights."""
  if not path.is_file():
    return None
  own = files.read_npz(path, "a round of this study", _ARRAYS)
  same = str(own["inputs"]) == state.inputs and np.array_equal(own["labelled"], labelled)
  return own if same else None


def _round(
  state: trainings.Run, name: str, rule: str, seed: int, labelled: np.ndarray, more: int,
  number: int,
) -> Row:  # fmt: skip
  """Trains on the labels, reads the test set, asks for `more` labels."""
  config = state.config.copy_and_resolve_references()
  config.seeds = (seed,)
  own = dataclasses.replace(state, config=config, train=state.train.subset(labelled))
  kept = {path.name for path in (state.workdir / "tasks").glob("*")}
  for key in set(own.rows) - kept:  # its weights are gone
    del own.rows[key]
  plan = choice.train_method(own, name, recipes.learning_rates(config, name))
  row = many.train_all(own, {name: plan}, executors.of(config, 1))[name]["chosen"][0]
  engine, pretrained = own.network_of(name)
  variables, _ = export.load_task(own.workdir / "tasks" / row["key"], pretrained.variables)
  test = state.tests[0]
  right = evaluate.predictions(engine.predict(variables, test.images)) == test.labels
  asked = np.zeros(0, np.int64)
  if more:
    rest = np.setdiff1d(np.arange(len(state.train)), labelled)
    pool = _pool(engine, variables, state.train, rest, labelled, acquisition.RULES[rule].needs)
    asked = rest[acquisition.RULES[rule].choose(pool, more, 1000 * seed + number).places]
  return {
    "inputs": np.array(state.inputs), "labelled": labelled, "right": right, "asked": asked,
  }  # fmt: skip


def _pool(
  engine: Any, variables: Any, images: data.Dataset, rest: np.ndarray, labelled: np.ndarray,
  needs: frozenset[str],
) -> acquisition.Pool:  # fmt: skip
  """What the network says of the images without a label."""
  if not needs:
    return acquisition.Pool(len(rest))

  def features(places: np.ndarray) -> np.ndarray:
    own = images.subset(places).images
    return evaluate.predict(engine.model, variables, own, stop="head", **engine.options())

  read = features(rest)
  logits = evaluate.predict(engine.model, variables, read, start="head", **engine.options())
  known = features(labelled) if needs == {"features"} else None
  return acquisition.Pool(len(rest), evaluate.probabilities(logits), read, known)


def _forget(state: trainings.Run) -> None:
  """Removes the weights and logits of trainings whose rounds are finished."""
  for folder in ("tasks", "logits"):
    shutil.rmtree(state.workdir / folder, ignore_errors=True)


def _record(state: trainings.Run, rounds: Mapping[Any, list], command: str) -> own_record.Record:
  config, test = state.config, state.tests[0]
  curves = {
    (name, rule): np.array([[own["right"] for own in rounds[name, rule, s]] for s in config.seeds])
    for name in config.methods
    for rule in config.rules
  }  # [seeds, totals, images]
  return {
    **fields.header(config, command),
    **provenance.run_facts(state.engine.mesh), "config": workdir_lib.as_json(config),
    "backbone": network.backbone_row(config, state.engine.model, state.pretrained),
    "data": {
      "pool": state.train.name, "num_pool": len(state.train), "num_test": len(test),
      "class_names": list(state.train.class_names), "num_validation": len(state.validation),
      "attribution": data.attribution(state.train.name),
    },
    "totals": list(config.totals),
    "seeds": list(config.seeds),
    "chose": [n for n in config.methods if len(recipes.learning_rates(config, n)) > 1
              or len(config[n].get("l2", ())) > 1],
    "rules": {rule: acquisition.RULES[rule].title for rule in config.rules},
    "methods": [
      {"name": name, "title": methods.DECLARED[name].title, "rules": rows}
      for name, rows in saved.summarize(curves, test.groups, tuple(config.totals)).items()
    ],
  }  # fmt: skip
