"""Head2Toe's stage: features of all units, their ranks by a group lasso, a head on the best.

arXiv 2201.03529. Every strength of the lasso with every fraction of the features gives a head with
L2 regularisation (`probe.py`); validation chooses among them. The optimum of the lasso has few
features; those that it leaves at zero rank behind them, by how soon they would join.
"""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import methods
from subtune_jax.data import preprocess
from subtune_jax.models import head2toe
from subtune_jax.statistics import criteria
from subtune_jax.training import (
  class_weights,
  divergence,
  evaluate,
  feature_store,
  group_lasso,
  resume,
  stage_runner,
  timing,
  trainable_split,
  under_way,
)
from subtune_jax.training import engine as engine_lib
from subtune_jax.training import mesh as mesh_lib

PyTree = Any
_ROWS_BYTES = 128 << 20  # divided by their length at a time


@functools.lru_cache(maxsize=8)
def _program(
  model: Any, target_size: int, units: str, preprocessing: preprocess.Preprocessing
) -> Any:
  def run(variables, x):
    x = preprocess.normalize(x, preprocessing)
    return head2toe.all_features(model, variables, x, target_size, units)[0]

  return jax.jit(run)


def read(
  engine: engine_lib.Engine,
  variables: PyTree,
  images: Any,
  *,
  target_size: int,
  units: str = "blocks",
  memory_bytes: int = feature_store.MEMORY_BYTES,
) -> tuple[feature_store.FeatureStore, head2toe.Sources]:
  """All features of images, a batch at a time, those of each unit at length 1; and their units.

  Args:
    engine: a backbone and its devices.
    variables: of the backbone.
    images: [n, h, w, 3] uint8.
    target_size: see `models.head2toe.Head2Toe`, as `units`.
    units: which outputs.
    memory_bytes: a larger table goes to a file.
  """
  mesh = engine.mesh
  sources = head2toe.sources_of(engine.model, variables, target_size, units)
  store = feature_store.FeatureStore(len(images), sum(n for _, n in sources), memory_bytes)
  program = _program(engine.model, target_size, units, engine.preprocessing)
  variables = mesh_lib.place({"batch_stats": {}, **variables}, mesh_lib.replicated(mesh))
  size, begin = -(-engine.batch_size // mesh.size) * mesh.size, 0
  for batch, real in evaluate.batches(images, size, None, mesh):
    rows = mesh_lib.place(program(variables, batch), mesh_lib.replicated(mesh))
    store.write(begin, np.asarray(rows)[:real])
    begin += real
  return store, sources


def relevance(
  engine: engine_lib.Engine,
  variables: PyTree,
  images: Any,
  labels: np.ndarray,
  *,
  target_size: int = 1024,
  strength: float = 0.05,
) -> dict[str, float]:
  """Block -> sum of the squared weights of its outputs in a group lasso on those of all blocks.

  Args:
    engine: see `read`, as the two below.
    variables: of the backbone.
    images: to fit on.
    labels: [n] integers.
    target_size: see `read`.
    strength: of the lasso, see `group_lasso.fit_path`.
  """
  store, sources = read(engine, variables, images, target_size=target_size)
  with contextlib.closing(store):
    (fit,) = group_lasso.fit_path(store, np.asarray(labels), strengths=(strength,))
  return by_source(fit.relevance, sources)


def by_source(values: np.ndarray, sources: head2toe.Sources) -> dict[str, float]:
  """Sums of values [N] of all features over each unit."""
  parts = np.split(values, np.cumsum([size for _, size in sources])[:-1])
  return {name: float(part.sum()) for (name, _), part in zip(sources, parts, strict=True)}


def most_relevant(fit: group_lasso.Fit, fraction: float) -> np.ndarray:
  """Rising positions of the share of features that come first by the lasso.

  Those with weights by their squares, then the others by their gradients; equal ones as they come.
  """
  order = np.lexsort((-fit.gradient, -fit.relevance))
  return np.sort(order[: head2toe.count(fraction, len(order))])


@stage_runner.run.register
def select_stage(
  solver: methods.SelectedFeatures,
  training: under_way.Training,
  index: int,
  plan: trainable_split.Plan,
  found: resume.Found | None,
) -> PyTree:
  """The whole method; see the module."""
  del plan, found  # solved anew
  watch = timing.Watch()
  model, engine = training.engine.model, training.engine
  sets = [x for x in (training.train, training.validation) if x is not None]
  labels = [np.asarray(x.labels) for x in sets]
  with contextlib.ExitStack() as stack:
    stores = []
    for own in sets:
      base = dataclasses.replace(engine, model=model.base)
      store, sources = read(
        base, head2toe.base_variables(training.variables), own.images,
        target_size=model.target_size, units=model.units,
      )  # fmt: skip
      stack.callback(store.close)
      stores.append(store)
    head, note, kept = _search(solver, training, stores, labels, sources)
    features = [_kept(store, kept, sources) for store in stores]
  divergence.check("the probe's weights", head, training.method[index], 0)
  watch.add_to(training)
  training.stages[index] |= note
  variables = _with(training.variables, model, head, kept)
  stage_runner.record_probe(training, index, head, features, labels, lambda: variables)
  return variables


def _search(
  solver: methods.SelectedFeatures,
  training: under_way.Training,
  stores: list[feature_store.FeatureStore],
  labels: list[np.ndarray],
  sources: head2toe.Sources,
) -> tuple[dict[str, np.ndarray], dict[str, Any], np.ndarray]:
  """(head, note, positions) of the best of all strengths and fractions.

  Of equally good ones that of the strongest lasso, and with the fewest features.
  """
  num_classes = training.engine.model.num_classes
  criterion = criteria.CRITERIA[training.select_by]
  weights = class_weights.of_classes(solver.class_weights, labels[0], num_classes)
  strengths = sorted(solver.strengths, reverse=True)
  fits = group_lasso.fit_path(stores[0], labels[0], strengths=strengths, class_weights=weights)
  best, top, grid = None, -np.inf, []
  for strength, fit in zip(strengths, fits, strict=True):
    relevance = fit.relevance
    for fraction in sorted(solver.fractions):
      kept = most_relevant(fit, fraction)
      features = [_kept(store, kept, sources) for store in stores]
      head, note, choice = stage_runner.fit_probe(
        solver, features, labels, num_classes, training.select_by
      )
      del features  # of which there would be two when the next ones are read
      value = 0.0 if choice is None else criterion.sign * float(choice.values[choice.index])
      row = {"strength": strength, "fraction": fraction, "kept": len(kept)}
      if choice is not None:
        row |= {"validation_accuracy": float(choice.accuracy[choice.index]),
                "validation_loss": float(choice.loss[choice.index])}  # fmt: skip
      grid.append(row)
      if value > top:
        top = value
        units = _units(relevance, kept, sources)
        note |= {"setting": [note["l2"], strength, fraction], "selection": row | {"units": units}}
        best = head, note, kept
  assert best is not None  # every choice has a finite value
  best[1]["selection"]["grid"] = grid
  return best


def _units(
  relevance: np.ndarray, kept: np.ndarray, sources: head2toe.Sources
) -> list[dict[str, Any]]:
  """A row for each unit, input to output: its features, the kept ones, their relevance."""
  counts = np.zeros(len(relevance))
  counts[kept] = 1
  of, num_kept = by_source(relevance, sources), by_source(counts, sources)
  return [
    {"unit": name, "features": size, "kept": int(num_kept[name]), "relevance": of[name]}
    for name, size in sources
  ]


def _kept(
  store: feature_store.FeatureStore, index: np.ndarray, sources: head2toe.Sources
) -> np.ndarray:
  """[n, len(index)] the features at rising positions, those of each unit at length one."""
  found = store.columns(index)
  size = max(1, _ROWS_BYTES // (4 * len(index)))
  for begin in range(0, len(found), size):
    rows = slice(begin, begin + size)
    found[rows] = _at_length_one(found[rows], index, sources)
  return found


@functools.partial(jax.jit, static_argnames="sources")
def _at_length_one(columns, index, sources):
  return head2toe.at_length_one(columns, index, sources)


def _with(variables: PyTree, model: Any, head: dict[str, np.ndarray], kept: np.ndarray) -> PyTree:
  """The network's variables with a head on the features at `kept`."""
  index = np.full(model.num_kept, model.num_features, np.int32)
  index[: len(kept)] = kept
  kernel = np.zeros((model.num_kept, model.num_classes), np.float32)
  kernel[: len(kept)] = head["kernel"]
  params = variables["params"]
  features = {**params["features"], "index": jnp.asarray(index)}
  new = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(head["bias"])}
  return {**variables, "params": {**params, "features": features, "head": new}}
