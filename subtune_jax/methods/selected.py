"""Head2Toe: a linear head on features of all units, chosen by a group lasso."""

from collections.abc import Sequence
from typing import Any

from subtune_jax import masks
from subtune_jax.methods import declaration, probing
from subtune_jax.methods import stage as stage_lib
from subtune_jax.methods.declaration import Declaration, Option

STRENGTHS = (0.2, 0.05, 0.0125)
FRACTIONS = (0.01, 0.03, 0.1, 0.3)


def head2toe(
  *,
  strengths: Sequence[float] = STRENGTHS,
  fractions: Sequence[float] = FRACTIONS,
  l2: Sequence[float] = probing.DEFAULT_L2,
  standardize: stage_lib.Standardize = "scalar",
) -> stage_lib.Method:
  """A head on chosen features of all units (arXiv 2201.03529), of a `models.head2toe.Head2Toe`.

  The fields are `SelectedFeatures`'.
  """
  solver = stage_lib.SelectedFeatures(
    tuple(l2), standardize, strengths=tuple(strengths), fractions=tuple(fractions)
  )
  rules = {masks.HEAD: stage_lib.HEAD_RULE, masks.TUNED: "/features/index"}
  return (
    stage_lib.Stage(name="selected features", rules=rules, solver=solver, norm_mode="running"),
  )


def _build(own: Any, context: declaration.Context) -> declaration.Builder:
  del context
  return lambda learning_rate: head2toe(
    strengths=tuple(own.strengths), fractions=tuple(own.fractions), l2=tuple(own.l2),
    standardize=own.standardize,
  )  # fmt: skip


def _all_units(model: Any, variables: Any, key: Any, options: Any) -> tuple[Any, Any]:
  from subtune_jax.models import head2toe as network  # linen modules: other methods need none

  del key
  fraction = max(options["fractions"], default=0.0)
  return network.wrap(model, variables, options["target_size"], options["units"], fraction)


DECLARATIONS = (
  Declaration(
    name="head2toe",
    title="Head2Toe",
    source="[paper](https://arxiv.org/abs/2201.03529)",
    trains="head on chosen features of all units",
    call="head2toe()",
    build=_build,
    options={
      "target_size": Option(1024, "features that the output of a unit is pooled to, about"),
      "units": Option("blocks", '"blocks", or "layers": what is in them as well'),
      "strengths": Option(
        STRENGTHS, "of the group lasso, as shares of the one at which all weights are zero"
      ),
      "fractions": Option(FRACTIONS, "of all features, that are kept; chosen on validation"),
      "l2": Option(probing.DEFAULT_L2, "strengths of the head, chosen on validation"),
      "standardize": Option("scalar", '"scalar", "feature" or "none"'),
    },
    prepare=_all_units,
  ),
)
