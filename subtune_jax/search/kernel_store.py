"""Kernels of the units of a search, kept on disk by everything that they depend on."""

import dataclasses
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np

from subtune_jax import files
from subtune_jax.data import choices, preprocess
from subtune_jax.search import evaluator, kernels, norm_statistics, predicted
from subtune_jax.training import evaluate, export, loop
from subtune_jax.training import ledger as ledger_lib

PyTree = Any
STATISTICS = ("candidate", "running", "images")  # of BatchNorm
FOLDER = "kernels"


@dataclasses.dataclass(frozen=True)
class Options:
  """How kernels are measured.

  Attributes:
    probes: random combinations of the features; see `kernels.gradient_kernels`.
    seed: of probes and sketches.
    statistics: of BatchNorm: "running" are those of the weights; with "candidate", which models a
      training on batch statistics, the features that each unit's head reads are also measured
      with that unit's statistics on the images; "images" are those of all blocks at once.
    batch_size: images at a time.
    landmarks: images that kernels have columns of, where there are more; None: all.
  """

  probes: int = 4
  seed: int = 0
  statistics: str = "running"
  batch_size: int = 64
  landmarks: int | None = None

  def __post_init__(self):
    choices.check("statistics", self.statistics, STATISTICS)
    if self.probes < 1 or self.batch_size < 1:
      raise ValueError(
        f"probes is {self.probes}, batch_size {self.batch_size}; each must be at least 1"
      )


def unit_kernels(
  problem: evaluator.Problem, engine: loop.Engine, options: Options, folder: str | os.PathLike
) -> kernels.Kernels:
  """The kernels of all units, read from FOLDER/kernels/KEY.npz or measured and written there.

  Args:
    problem: of a search. Its labels and folds are not read.
    engine: model, preprocessing and mesh.
    options: see there.
    folder: that of the search's store.
  """
  path = pathlib.Path(folder) / FOLDER / f"{key(problem, engine, options)}.npz"
  names = problem.network.names
  if path.exists():
    drawn = kernels.draw_landmarks(len(problem.train), options.landmarks, options.seed)
    return _read(path, names, drawn)
  model, variables = engine.model, problem.variables
  if options.statistics == "images":
    variables = norm_statistics.reestimate(
      engine, variables, problem.train.images, options.batch_size
    )
  params = dict(variables["params"])
  others = {name: value for name, value in variables.items() if name != "params"}

  def apply(params, images):
    images = preprocess.normalize(images, engine.preprocessing)
    return model.apply({**others, "params": params}, images, stop="head")

  labels = kernels.unit_labels(params, {n: problem.network.units[n].blocks for n in names})
  found = kernels.gradient_kernels(
    apply, params, problem.train.images, labels, probes=options.probes, seed=options.seed,
    batch_size=options.batch_size, landmarks=options.landmarks,
    mesh=engine.mesh if engine.mesh.size > 1 else None,
  )  # fmt: skip
  begin, own = time.perf_counter(), {}
  if options.statistics == "candidate":
    own = norm_statistics.candidate_features(
      engine, variables, problem.train.images, problem.network, options.batch_size
    )
  found = dataclasses.replace(
    found, groups={name: found.groups[name] for name in names}, features=own,
    seconds=round(found.seconds + time.perf_counter() - begin, 3),
  )  # fmt: skip
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_npz(path, _arrays(found))
  return found


def key(problem: evaluator.Problem, engine: loop.Engine, options: Options) -> str:
  """Identity of kernels: all that they depend on."""
  units = [[unit.name, list(unit.blocks)] for unit in problem.network.units.values()]
  described = dataclasses.asdict(options)
  if options.statistics == "running":
    del described["batch_size"]  # an option of speed
  if kernels.draw_landmarks(len(problem.train), options.landmarks, options.seed) is None:
    del described["landmarks"]  # the kernels of all images
  return ledger_lib.key_of(
    {
      "version": 3,
      "data": problem.train.fingerprint(),
      "variables": export.backbone_digest(problem.variables),
      "model": repr(engine.model),
      "preprocessing": ledger_lib.plain(engine.preprocessing),
      "units": units,
      "buckets": kernels.BUCKETS,
      **described,
    }
  )


def start_outputs(problem: evaluator.Problem, engine: loop.Engine) -> predicted.Start:
  """Of features [n, D] the probabilities [n, classes] of the head that the weights have."""

  def start(features: np.ndarray) -> np.ndarray:
    logits = evaluate.run_units(
      engine.model, problem.variables, features, start="head", batch_size=engine.batch_size,
      preprocessing=engine.preprocessing, mesh=engine.mesh,
    )  # fmt: skip
    return np.asarray(jax.nn.softmax(np.asarray(logits), axis=-1), np.float64)

  return start


def _arrays(found: kernels.Kernels) -> dict[str, np.ndarray]:
  names = list(found.groups)
  return {
    "head": found.head,
    "groups": np.stack([found.groups[name] for name in names]),
    "num_params": np.array([found.num_params[name] for name in names]),
    "square_norms": np.array([found.square_norms[name] for name in names]),
    "seconds": np.array([found.seconds, found.compile_seconds]),
    "measured": np.array([name in found.features for name in names]),
    "features": np.array([found.base, *found.features.values()], np.float32),
  }


def _read(
  path: pathlib.Path, names: tuple[str, ...], landmarks: np.ndarray | None
) -> kernels.Kernels:
  wanted = ("head", "groups", "num_params", "square_norms", "seconds", "measured", "features")
  found = files.read_npz(path, "the kernels of this search", wanted)
  by_name = (dict(zip(names, found[key], strict=True)) for key in wanted[1:4])
  groups, num_params, square_norms = by_name
  own = [name for name, has in zip(names, found["measured"], strict=True) if has]
  seconds, compile_seconds = found["seconds"].tolist()
  return kernels.Kernels(
    found["head"], groups, {k: int(v) for k, v in num_params.items()},
    {k: float(v) for k, v in square_norms.items()}, seconds, compile_seconds,
    found["features"][0], dict(zip(own, found["features"][1:], strict=True)),
    landmarks,
  )  # fmt: skip
