"""Running averages of the trained leaves, which evaluation and later stages read.

Frozen dataclasses with `__call__`, as the penalties are.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


@dataclasses.dataclass(frozen=True)
class EMA:
  """Exponential moving average: running <- decay * running + (1 - decay) * trained, every step.

  It starts from the leaves at the start of the stage and is not corrected for that. Evaluation and
  the stages after it read the average; BatchNorm's running statistics are not averaged again.

  Attributes:
    decay: in [0, 1); of the order of 1 - 10 / steps for a short training.
  """

  decay: float

  def __post_init__(self):
    if not 0 <= self.decay < 1:
      raise ValueError(f"decay is {self.decay}; it must lie in [0, 1)")

  def __call__(self, running: PyTree, trained: PyTree, step: jax.Array) -> PyTree:
    """The average after the step, a tree like `trained`."""
    del step
    return jax.tree.map(lambda r, t: self.decay * r + (1 - self.decay) * t, running, trained)


@dataclasses.dataclass(frozen=True)
class SWA:
  """The mean of the leaves after every step from `first_step` on (stochastic weight averaging).

  arXiv 1803.05407 averages once an epoch under a cyclic or constant rate; this averages every step,
  which differs by the iterates within an epoch. Before `first_step` it is the leaves themselves.

  Attributes:
    first_step: steps of the stage that are left out.
  """

  first_step: int = 0

  def __post_init__(self):
    if not self.first_step >= 0:
      raise ValueError(f"first_step is {self.first_step}; it must be at least 0")

  def __call__(self, running: PyTree, trained: PyTree, step: jax.Array) -> PyTree:
    """The average after step number `step` (from 0), a tree like `trained`."""
    share = 1.0 / jnp.maximum(step - self.first_step + 1, 1)
    return jax.tree.map(lambda r, t: r + share.astype(t.dtype) * (t - r), running, trained)
