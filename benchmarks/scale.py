"""The scheduler at scale: thousands of trainings on hundreds of simulated workers that fail.

  python benchmarks/scale.py                       # 10,000 trainings, 256 workers, six minutes

All of the driver is the library's own: the search's evaluator, its store with ledger and logits,
and `workers.on_ray`. Only Ray and the trainings are stand-ins: a training is a wait on a worker
of `simulated_cluster`, and its answers are random numbers that its key decides. It takes the
longer, the earlier the first block is that it tunes, as measured (`results/search_cpu.md`).

Utilisation is the share of the workers' time, from the first submission to the last result, that
went into trainings whose results were kept. Starts of workers, what was lost, and the time in which
a worker waits for the driver count against it.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import pathlib
import resource
import sys
import tempfile
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import simulated_cluster

from subtune_jax import data, methods, models
from subtune_jax.data import preprocess
from subtune_jax.search import evaluator, store, trainer, units
from subtune_jax.training import loop
from subtune_jax.training import mesh as mesh_lib
from subtune_jax.workers import on_ray

FOLDS, IMAGES, CLASSES = 5, 500, 10
DEAREST = 4.4  # a training from the first block on, of one of the last block (search_cpu.md)


@dataclasses.dataclass(frozen=True)
class Found:
  """A finished simulation.

  Attributes:
    trainings: asked for.
    workers: at a time.
    seconds: from the first submission to the last result.
    utilisation: see the module.
    lost: calls whose worker died.
    machines_lost: whole machines that went.
    kept: lines of the ledger.
    twice: keys with more than one line.
    missing: trainings without one.
    driver: processor seconds of this process for each training.
  """

  trainings: int
  workers: int
  seconds: float
  utilisation: float
  lost: int
  machines_lost: int
  kept: int
  twice: int
  missing: int
  driver: float


def method(blocks):
  """What the evaluator describes in its keys; nothing is trained."""
  return methods.sub_tuning(blocks, 1e-3, epochs=1)


def problem() -> tuple[evaluator.Problem, loop.Engine]:
  """A search over the blocks of a small network."""
  model = models.create(
    "resnet14", num_classes=CLASSES, stage_sizes=(3, 4, 4), width=4, image_size=16
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  made = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  labels = (np.arange(IMAGES) % CLASSES).astype(np.int32)
  ids = np.array([f"{i:05}" for i in range(IMAGES)])
  images = np.zeros((IMAGES, 16, 16, 3), np.uint8)
  names = tuple(f"c{i}" for i in range(CLASSES))
  train = data.Dataset(images, labels, ids, ids, names, "simulated", "train")
  folds = tuple(
    (np.flatnonzero(np.arange(IMAGES) % FOLDS != f), np.flatnonzero(np.arange(IMAGES) % FOLDS == f))
    for f in range(FOLDS)
  )
  variables = {"params": made["params"], "batch_stats": made["batch_stats"]}
  found = evaluator.Problem(units.network(model, "blocks"), variables, "", train, folds, (0,))
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  engine = loop.Engine(model, preprocess.Preprocessing((127.0,), (64.0,)), mesh=mesh)
  return found, engine


def fake(shared, job):
  """The answers of a training, which its job decides."""
  del shared
  rows = np.flatnonzero(np.arange(IMAGES) % FOLDS == job.fold)
  draw = np.random.default_rng([job.fold, job.seed, *map(ord, "".join(job.units))])
  logits = draw.standard_normal((len(rows), CLASSES)).astype(np.float32)
  row = {"units": list(job.units), "fold": job.fold, "seed": job.seed, "accuracy": 0.5, "loss": 1.0,
         "seconds": 1.0, "compile_seconds": 0.0}  # fmt: skip
  return row, {"logits": logits, "rows": rows}


def simulate(trainings: int, plan: simulated_cluster.Plan, folder: pathlib.Path) -> Found:
  """Runs it in real time; the store goes to `folder`."""
  search, engine = problem()
  names = search.network.names
  every = itertools.chain.from_iterable(
    itertools.combinations(names, size) for size in range(1, len(names) + 1)
  )
  sets = list(itertools.islice(every, -(-trainings // FOLDS)))
  weights = {own: DEAREST + (1 - DEAREST) * names.index(own[0]) / (len(names) - 1) for own in sets}
  mean = sum(weights.values()) / len(weights)
  cluster = simulated_cluster.Cluster(plan, lambda args: weights[args[1].units] / mean)
  patches = (
    mock.patch.dict(sys.modules, {"ray": cluster.module()}),
    mock.patch.object(on_ray, "available", return_value=True),
    mock.patch.object(trainer, "train", fake),
  )
  with patches[0], patches[1], patches[2]:
    executor = on_ray.RayExecutor(cpus=1.0, gpus=0.0)
    recipe = evaluator.Recipe(method, methods.linear_probing(l2=(1e-2,)))
    made = evaluator.Evaluator(search, recipe, engine, store.Store(folder), executor=executor)
    begin, spent = time.monotonic(), _processor()
    made.evaluate(sets)
    seconds, spent = time.monotonic() - begin, _processor() - spent
    executor.shutdown()
  count = len(sets) * FOLDS
  workers = plan.machines * plan.workers
  lines = (folder / "ledger.jsonl").read_text().splitlines()
  keys = collections.Counter(json.loads(line)["key"] for line in lines)
  wanted = {made.key(own, fold, 0) for own in sets for fold in range(FOLDS)}
  return Found(
    count, workers, seconds, cluster.busy / (workers * seconds), cluster.lost,
    cluster.machines_lost, len(lines), sum(n > 1 for n in keys.values()),
    len(wanted - keys.keys()), spent / count,
  )  # fmt: skip


def _processor() -> float:
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return usage.ru_utime + usage.ru_stime


def main() -> None:
  """Simulates, and prints what was found."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--trainings", type=int, default=10_000)
  for field in dataclasses.fields(simulated_cluster.Plan):
    name = f"--{field.name.replace('_', '-')}"
    parser.add_argument(name, type=type(field.default), default=field.default)
  given = vars(parser.parse_args())
  trainings = given.pop("trainings")
  with tempfile.TemporaryDirectory() as folder:
    found = simulate(trainings, simulated_cluster.Plan(**given), pathlib.Path(folder))
  for name, value in dataclasses.asdict(found).items():
    print(f"{name:14} {value:.4g}" if isinstance(value, float) else f"{name:14} {value}")


if __name__ == "__main__":
  main()
