"""Gradients of the loss in every unit, measured again after a set was trained for a short time."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from subtune_jax.data import preprocess
from subtune_jax.search import kernels, scores, trainer
from subtune_jax.training import loop

PyTree = Any


class Gradients(NamedTuple):
  """Of each unit.

  Attributes:
    relative: |g| / |theta|, g the gradient of the mean loss (Auto-RGN of arXiv 2210.11466, over all
      tensors of the unit at once).
    signal: |g|^2 by the mean of |g_j - g|^2 over batches j of equal size (as Auto-SNR there).
  """

  relative: dict[str, float]
  signal: dict[str, float]


class BriefFit:
  """Trains a set on all images as the search would, then measures; each set once.

  Args:
    problem: of a search. All its images are trained on, none is held out: nothing is scored.
    recipe: how a set is trained, at one learning rate; its epochs are the short time.
    engine: model, batch size.
    seed: of the training and of the batches that the gradient is taken of.

  Raises:
    ValueError: several learning rates, or fewer images than two batches.
  """

  def __init__(
    self, problem: trainer.Problem, recipe: trainer.Recipe, engine: loop.Engine, seed: int = 0
  ):
    count = len(problem.train)
    if recipe.by_rate:
      raise ValueError(f"learning rates {list(recipe.by_rate)}; give a recipe of one")
    if count < 2 * engine.batch_size:
      raise ValueError(f"{count} images; two batches of {engine.batch_size} are needed")
    rows = np.arange(count)
    problem = dataclasses.replace(problem, folds=((rows, rows),))
    self._setting = trainer.Setting(problem, recipe, engine, None, 0, 0)
    self._trainer = trainer.of_place(self._setting)
    self._seed = seed
    network = problem.network
    units = {name: network.units[name].blocks for name in network.names}
    self._labels = jax.tree.leaves(kernels.unit_labels(problem.variables["params"], units))
    self._gradient = _gradient(engine)
    self._found: dict[scores.Units, Gradients] = {}

  def __call__(self, chosen: scores.Units) -> Gradients:
    """The gradients after the training of `chosen`, which may be ()."""
    if chosen not in self._found:
      job = trainer.Job(chosen, 0, self._seed)
      result = self._trainer.fit(job, self._setting.methods(chosen)[0])
      self._found[chosen] = self._measure(result.variables)
    return self._found[chosen]

  def _measure(self, variables: PyTree) -> Gradients:
    """BatchNorm runs on its statistics."""
    problem, size = self._setting.problem, self._setting.engine.batch_size
    order = np.random.default_rng(self._seed).permutation(len(problem.train))
    batches = order[: len(order) // size * size].reshape(-1, size)
    total: PyTree = None
    squares: Any = 0.0
    labels = np.asarray(problem.train.labels)
    for rows in np.sort(batches):
      own = self._gradient(variables, problem.train.images[rows], labels[rows])
      total = own if total is None else jax.tree.map(jnp.add, total, own)
      squares = squares + self._squares(own)
    names, number = problem.network.names, len(batches)
    mean = self._squares(total) / number**2
    weights = self._squares(variables["params"])
    spread = np.maximum(squares / number - mean, np.finfo(np.float64).tiny)
    return Gradients(
      dict(zip(names, np.sqrt(mean / weights).tolist(), strict=True)),
      dict(zip(names, (mean / spread).tolist(), strict=True)),
    )

  def _squares(self, tree: PyTree) -> np.ndarray:
    """[units] squared length of the entries of each unit, in the network's order."""
    found = dict.fromkeys(self._setting.problem.network.names, 0.0)
    for name, leaf in zip(self._labels, jax.tree.leaves(tree), strict=True):
      if name in found:
        found[name] += float(jnp.sum(jnp.square(leaf.astype(jnp.float32))))
    return np.array(list(found.values()))


def _gradient(engine: loop.Engine):
  """(variables, images, labels) -> the gradient of the mean loss in the parameters."""

  def loss(params, others, images, labels):
    images = preprocess.normalize(images, engine.preprocessing)
    logits = engine.model.apply({**others, "params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  program = jax.jit(jax.grad(loss))

  def gradient(variables, images, labels):
    others = {name: value for name, value in variables.items() if name != "params"}
    return program(variables["params"], others, images, labels)

  return gradient
