"""Side-tuning: a trained copy beside the frozen network."""

from typing import Any

from subtune_jax.methods import declaration
from subtune_jax.methods import stage as stage_lib
from subtune_jax.methods.declaration import Declaration


def side_tuning(
  learning_rate: float, *, head_learning_rate: float | None = None, **stage: Any
) -> stage_lib.Method:
  """The head and the side network of a `models.side.SideTuned` (arXiv 1912.13503)."""
  return (stage_lib.tune("side", "/side/tuned", learning_rate, head_learning_rate, stage),)


def _beside(model: Any, variables: Any, key: Any, options: Any) -> tuple[Any, Any]:
  from subtune_jax.models import side  # linen modules: not needed by methods that change no network

  del key, options
  return side.wrap(model, variables)


DECLARATIONS = (
  Declaration(
    name="side_tuning",
    title="Side-tuning",
    source="[paper](https://arxiv.org/abs/1912.13503)",
    trains="head and a copy beside the frozen network",
    call="side_tuning(1e-3, epochs=8)",
    build=lambda own, context: side_tuning,
    gradient=declaration.gradient(),
    prepare=_beside,
  ),
)
