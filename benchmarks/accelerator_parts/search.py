"""A finetuning profile and a greedy search, from single trainings: 5 folds, three blocks chosen.

As benchmarks/search.py: one fold of some blocks is trained, a training between two of them is taken
to be between them in time, and the sum is multiplied by the folds. The second and the third step of
the greedy search train each candidate beside blocks that are chosen: here the last, then the last
and the one in the middle. Before, each training runs once on another fold, which compiles, and the
prefix cache is filled for it ("cache s", with what that compiles).
"""

from collections.abc import Iterator, Sequence
import tempfile
import time
from typing import Any

import jax
import numpy as np

from benchmarks.accelerator_parts import measuring, subtuning
from benchmarks.accelerator_parts import programs as programs_lib
from subtune_jax import data, methods
from subtune_jax.data import splits
from subtune_jax.search import evaluator, store
from subtune_jax.search import units as units_lib
from subtune_jax.training import blockwise_step, loop
from subtune_jax.training import mesh as mesh_lib

FOLDS, EPOCHS, BATCH, CLASSES = 5, 2, 64, 10
_PREFIX_BYTES = 8 << 30


def _chosen(model: Any, steps: int) -> tuple[str, ...]:
  """What the search has chosen before its step 0, 1 or 2."""
  places = subtuning.blocks(model)
  return (places["last"], places["middle"])[:steps]


def _candidates(names: Sequence[str], chosen: Sequence[str]) -> list[str]:
  """The first, one in the middle and the last of the blocks that are left."""
  left = [name for name in names if name not in chosen]
  return [left[0], left[len(left) // 2], left[-1]]


def programs(scale: programs_lib.Scale) -> Iterator[programs_lib.Program]:
  """The steps of the trainings in the last step of the search, each put together as one program."""
  for network in subtuning.NETWORKS:
    model = scale.model(network)
    chosen = _chosen(model, 2)
    for name in _candidates(model.block_names, chosen):
      method = methods.sub_tuning((name, *chosen), programs_lib.RATE, epochs=EPOCHS)
      spec = programs_lib.spec_of(model, method)
      step = blockwise_step.Step(spec)
      batch = min(BATCH, scale.images // 2)
      yield programs_lib.training(f"{network} {name} beside two", spec, batch, step=step)


def _data(scale: programs_lib.Scale) -> data.Dataset:
  n = scale.images
  images = programs_lib.random_rows((n, scale.size, scale.size, 3), np.uint8)
  ids = np.array([str(i) for i in range(n)])
  names = tuple(map(str, range(CLASSES)))
  return data.Dataset(images, np.arange(n, dtype=np.int32) % CLASSES, ids, ids, names, "random",
                      "train")  # fmt: skip


def _evaluator(scale: programs_lib.Scale, model: Any, folder: str) -> evaluator.Evaluator:
  train = _data(scale)
  folds = tuple(splits.fold_indices(train.labels, train.groups, FOLDS, 0))
  network = units_lib.network(model, "blocks")
  variables = programs_lib.random_variables(model)
  problem = evaluator.Problem(network, variables, "random", train, folds, (0,))
  recipe = evaluator.Recipe(
    lambda blocks: methods.sub_tuning(blocks, programs_lib.RATE, epochs=EPOCHS),
    methods.linear_probing()[:1],
  )
  engine = loop.Engine(
    model, programs_lib.PREPROCESSING, mesh=mesh_lib.make_mesh(jax.devices()[:1]),
    batch_size=BATCH, in_pieces=True,
  )  # fmt: skip
  return evaluator.Evaluator(
    problem, recipe, engine, store.Store(folder), prefix_bytes=_PREFIX_BYTES
  )


def extrapolated(names: Sequence[str], chosen: Sequence[str], seconds: dict[str, float]) -> float:
  """Seconds of training every block that is left, on all folds, from those of some.

  Args:
    names: all blocks, input to output.
    chosen: trained beside each.
    seconds: of one training by candidate.
  """
  left = [name for name in names if name not in chosen]
  known = [i for i, name in enumerate(left) if name in seconds]
  times = np.interp(np.arange(len(left)), known, [seconds[left[i]] for i in known])
  return float(FOLDS * times.sum())


def run(scale: programs_lib.Scale, log: measuring.Log) -> None:
  """Per network: a row for the profile, for each further step, and for the whole search."""
  for network in subtuning.NETWORKS:
    log.attempt({"network": network}, lambda network=network: _search(scale, log, network))


def _search(scale: programs_lib.Scale, log: measuring.Log, network: str) -> None:
  model = scale.model(network, num_classes=CLASSES)
  total, compiling = 0.0, 0.0
  with tempfile.TemporaryDirectory() as folder:
    made = _evaluator(scale, model, folder)
    names = made.problem.network.names
    for step in range(3):
      chosen = _chosen(model, step)
      seconds: dict[str, float] = {}
      filling = 0.0
      for name in _candidates(names, chosen):
        if log.late:
          log.add(network=network, error=f"the time was over in step {step + 1} of the search")
          made.close()
          return
        units = tuple(sorted((name, *chosen), key=names.index))
        begin = time.perf_counter()
        jax.block_until_ready(made.prefix.at(units[0]))
        filling += time.perf_counter() - begin
        for fold in (1, 0):
          made.cells([units], fold)
        (row,) = (r for r in made.rows(units) if r["fold"] == 0)
        seconds[name] = row["seconds"]
      compiled = sum(row["compile_seconds"] for row in made.used.values())
      own = extrapolated(names, chosen, seconds)
      total += own
      what = "profile, and the first block" if step == 0 else f"block {step + 1} of a greedy search"
      log.add(**{
        "network": network, "what": what, "trainings": FOLDS * (len(names) - len(chosen)),
        "s": own, "compile s": compiled - compiling, "cache s": filling,
        "s of single trainings": ", ".join(f"{k} {v:.2f}" for k, v in seconds.items()),
      })  # fmt: skip
      compiling = compiled
    made.close()
  log.add(**{"network": network, "what": "greedy, k = 3", "s": total, "compile s": compiling})
