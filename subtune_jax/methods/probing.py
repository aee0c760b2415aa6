"""Methods that train the head alone."""

from collections.abc import Sequence
from typing import Any

from subtune_jax import masks
from subtune_jax.methods import declaration
from subtune_jax.methods import stage as stage_lib
from subtune_jax.methods.declaration import Declaration, Option

# 1e-7 ... 1e2 as inverse strengths of 1,000 examples, the grid of the LP-FT code, thinned.
DEFAULT_L2 = tuple(10.0 ** (k / 2) for k in range(2, -13, -1))


def linear_probing(
  *,
  l2: Sequence[float] = DEFAULT_L2,
  standardize: stage_lib.Standardize = "scalar",
  max_steps: int | None = None,
  rescale: bool = False,
  class_weights: str | tuple[float, ...] = "none",
) -> stage_lib.Method:
  """Linear probing: the head alone, by L-BFGS (LP-FT, section 2). The fields are `LBFGS`'s."""
  solver = stage_lib.LBFGS(tuple(l2), standardize, max_steps, rescale, class_weights)
  return (
    stage_lib.Stage(
      name="head", rules={masks.HEAD: stage_lib.HEAD_RULE}, solver=solver, norm_mode="running"
    ),
  )


def head_only(learning_rate: float, **stage: Any) -> stage_lib.Method:
  """The head alone by gradient steps, from where it is: a head that knows the classes.

  A head that was just drawn is better solved for: `linear_probing`. `stage` holds further fields of
  `Gradient` and `Stage`; a `head_learning_rate` among them takes the place of `learning_rate`.
  """
  rate = stage.pop("head_learning_rate", None)
  rate = learning_rate if rate is None else rate
  return (stage_lib.gradient_stage("head", {}, {masks.HEAD: rate}, stage),)


def _probe(own: Any, context: declaration.Context) -> declaration.Builder:
  del context
  return lambda learning_rate, **stage: linear_probing(
    l2=tuple(own.l2),
    standardize=own.standardize,
    max_steps=own.max_steps or None,
    rescale=stage.get("rescale", False),
  )


DECLARATIONS = (
  Declaration(
    name="lp",
    title="Linear probing",
    trains="head, by L-BFGS",
    call="linear_probing()",
    build=_probe,
    options={
      "l2": Option(DEFAULT_L2, "strengths tried, chosen on validation"),
      "standardize": Option("scalar", '"scalar", "feature" or "none"'),
      "max_steps": Option(
        0, "stop every probe after so many L-BFGS steps from a zero head; 0: converged"
      ),
      "rescale": Option(
        False, "fine-tune a probed head at the standard deviation of the random one"
      ),
    },
  ),
  Declaration(
    name="head_only",
    title="Head by gradient steps",
    trains="head, from where it is",
    call="head_only(1e-3, epochs=8)",
    build=lambda own, context: head_only,
    gradient=declaration.gradient(norm_mode="running"),
    needs=frozenset({"head"}),
  ),
)
