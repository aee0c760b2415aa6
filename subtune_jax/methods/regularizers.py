"""Penalties of a training stage: plain functions of the trained leaves, logits and the batch.

They are frozen dataclasses with `__call__`, so that two of equal fields share one compiled step and
a ledger can write them down.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def _split(tree: PyTree) -> tuple[list[Any], list[Any]]:
  """(leaves outside the head, leaves of the head)."""
  rest = {name: value for name, value in tree.items() if name != "head"}
  return jax.tree.leaves(rest), jax.tree.leaves(tree.get("head"))


def _not_negative(name: str, value: float) -> None:
  if not value >= 0:
    raise ValueError(f"{name} is {value}; it must be at least 0")


@dataclasses.dataclass(frozen=True)
class L2SP:
  """L2-SP: weight * |theta - theta_0|^2 over the trained leaves outside the head.

  "Explicit Inductive Bias for Transfer Learning" (arXiv 1802.01483), without its factor 1/2, as in
  the LP-FT code. theta_0 is what the leaves were at the start of the stage.

  Attributes:
    weight: of the distance to the start (alpha / 2 of the paper; 0.01 in the LP-FT code).
    head_weight: of |w|^2 over the head (beta / 2 of the paper; 0 in the LP-FT code).
  """

  weight: float
  head_weight: float = 0.0

  def __post_init__(self):
    _not_negative("weight", self.weight)
    _not_negative("head_weight", self.head_weight)

  def __call__(
    self, trained: PyTree, initial: PyTree, logits: jax.Array, batch: Mapping[str, Any]
  ) -> jax.Array:
    """The penalty, a scalar."""
    del logits, batch
    (now, head), (start, _) = _split(trained), _split(initial)
    distance = sum(jnp.sum(jnp.square(a - b)) for a, b in zip(now, start, strict=True))
    total = self.weight * jnp.asarray(distance, jnp.float32)
    if self.head_weight:
      total += self.head_weight * sum(jnp.sum(jnp.square(leaf)) for leaf in head)
    return total


@dataclasses.dataclass(frozen=True)
class Distillation:
  """weight * T^2 * KL(source || now) of softmaxes at temperature T over some of the classes.

  Learning without forgetting (arXiv 1606.09282) for classes without data: the source's logits of
  each training image say how they relate. Reads the column "source_logits" [batch, classes] of the
  training set, whose -inf marks a class that is left out; without a class the penalty is 0. The
  source is read on the images without augmentation.

  Attributes:
    weight: of the penalty.
    temperature: T, above 0.
  """

  weight: float
  temperature: float = 1.0

  def __post_init__(self):
    _not_negative("weight", self.weight)
    if not self.temperature > 0:
      raise ValueError(f"temperature is {self.temperature}; it must be above 0")

  def __call__(
    self, trained: PyTree, initial: PyTree, logits: jax.Array, batch: Mapping[str, Any]
  ) -> jax.Array:
    """The penalty, a scalar."""
    del trained, initial
    if "source_logits" not in batch:
      raise ValueError(
        "Distillation reads the column 'source_logits'; give it with the training set"
      )
    source = batch["source_logits"]
    kept = jnp.isfinite(source)

    def log_p(z):
      z = jnp.where(kept, z / self.temperature, -1e30)
      return z - jax.nn.logsumexp(z, axis=-1, keepdims=True)

    before, now = log_p(source), log_p(logits)
    terms = jnp.where(kept, jnp.exp(before) * (before - now), 0.0)
    return self.weight * self.temperature**2 * jnp.mean(jnp.sum(terms, axis=-1))


@dataclasses.dataclass(frozen=True)
class FeatureRank:
  """weight * |K|_F^2 / d^2, K the correlations of the d features over the batch.

  Correlated features span few dimensions; pushing their correlations down keeps the rank up. One
  form of a feature-rank regulariser, that of FedDecorr (arXiv 2210.00226). A feature that is
  constant over the batch counts as uncorrelated.

  Attributes:
    weight: of the penalty.
  """

  weight: float
  reads_features = True  # "features" [batch, d] in the batch: what the head reads

  def __post_init__(self):
    _not_negative("weight", self.weight)

  def __call__(
    self, trained: PyTree, initial: PyTree, logits: jax.Array, batch: Mapping[str, Any]
  ) -> jax.Array:
    """The penalty, a scalar."""
    del trained, initial, logits
    features = batch["features"]
    features = jnp.reshape(features, (features.shape[0], -1)).astype(jnp.float32)
    centred = features - jnp.mean(features, axis=0, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=0, keepdims=True)
    scores = centred * jax.lax.rsqrt(jnp.where(variance > 1e-12, variance, 1.0))
    # |K|_F from the smaller of the two products, K = scores' scores / n.
    n, d = scores.shape
    product = scores @ scores.T if n < d else scores.T @ scores
    return self.weight * jnp.sum(jnp.square(product / (n * d)))
