"""Everything, each tensor at a rate of its own: the automatic forms of surgical fine-tuning."""

from collections.abc import Mapping
import functools
from typing import Any

from subtune_jax.methods import declaration, selectors
from subtune_jax.methods import stage as stage_lib
from subtune_jax.methods.declaration import Declaration, Option

# Of Auto-SNR, on the scale from the noisiest tensor (0) to the clearest (1).
SNR_THRESHOLD = 0.05


def auto_rgn(
  learning_rate: float,
  *,
  head_learning_rate: float | None = None,
  num_batches: int | None = 5,
  released: bool = False,
  **stage: Any,
) -> stage_lib.Method:
  """Auto-RGN: every tensor at a rate in proportion to its relative gradient norm |g| / |theta|.

  The head's tensors are measured and normalised with all others, as in the paper, where the head
  comes with the network. One that was just drawn is small beside its gradient and takes most of the
  rate: put `linear_probing()` before it, `linear_probing() + auto_rgn(...)`.

  Args:
    learning_rate: of a tensor whose multiplier is 1.
    head_learning_rate: likewise, of the head; `learning_rate` when None.
    num_batches: see `TensorRates`.
    released: as the paper's code, not the paper: divided by the maximum, not min-max; BatchNorm's
      scales and biases frozen; moments fresh in every epoch. That code's Adam has a constant rate.
    **stage: further fields of `Gradient` and `Stage`.
  """
  rates = stage_lib.TensorRates("rgn_released" if released else "rgn", num_batches)
  return _auto(rates, learning_rate, head_learning_rate, released, stage)


def auto_snr(
  learning_rate: float,
  *,
  head_learning_rate: float | None = None,
  threshold: float | None = None,
  num_batches: int | None = 5,
  released: bool = False,
  **stage: Any,
) -> stage_lib.Method:
  """Auto-SNR: tensors whose gradient is mostly noise are frozen for the epoch.

  Args:
    learning_rate: of the tensors that are trained.
    head_learning_rate: likewise, of the head; `learning_rate` when None.
    threshold: below it a tensor is frozen; a hyper-parameter, `SNR_THRESHOLD` when None and 0.95
      when None and `released`.
    num_batches: see `TensorRates`.
    released: as the paper's code, not the paper: the variance is over the output channels of the
      batch's gradient and not over examples, nothing is normalised, BatchNorm's scales and biases
      are frozen, and moments are fresh in every epoch.
    **stage: further fields of `Gradient` and `Stage`.
  """
  if threshold is None:
    threshold = 0.95 if released else SNR_THRESHOLD
  rates = stage_lib.TensorRates("snr_released" if released else "snr", num_batches, threshold)
  return _auto(rates, learning_rate, head_learning_rate, released, stage)


def _auto(
  rates: stage_lib.TensorRates,
  learning_rate: float,
  head_learning_rate: float | None,
  released: bool,
  stage: Mapping[str, Any],
) -> stage_lib.Method:
  """Everything, or everything but BatchNorm, with a rate for each tensor."""
  selector = selectors.without_batch_norm if released else selectors.backbone
  return (
    stage_lib.tune("all", selector, learning_rate, head_learning_rate, {**stage, "rates": rates}),
  )


_OPTIONS = {
  "num_batches": Option(5, "read at the start of an epoch to set the tensors' rates; 0 is all"),
  "released": Option(False, "the formula of the paper's code, not that of the paper"),
  "probe_first": Option(False, "start from the linear probe: the paper's heads know the classes"),
}


def _measured(own: Any) -> dict[str, Any]:
  return {"num_batches": own.num_batches or None, "released": own.released}


DECLARATIONS = (
  Declaration(
    name="auto_rgn",
    title="Auto-RGN",
    source="[paper](https://arxiv.org/abs/2210.11466)",
    trains="everything, each tensor at a rate by its relative gradient norm",
    call="auto_rgn(1e-2, epochs=8)",
    build=lambda own, context: functools.partial(auto_rgn, **_measured(own)),
    options=_OPTIONS,
    gradient=declaration.gradient(learning_rates=(1e-2,)),
    grid=(*declaration.DECADES, 1e-1),  # the released code's; multipliers are at most 1
  ),
  Declaration(
    name="auto_snr",
    title="Auto-SNR",
    source="same paper",
    trains="everything but tensors whose gradient is mostly noise",
    call="auto_snr(1e-3, epochs=8)",
    build=lambda own, context: functools.partial(
      auto_snr, threshold=own.threshold or None, **_measured(own)
    ),
    options=_OPTIONS
    | {"threshold": Option(0.0, "below it a tensor is frozen; 0: 0.05, or 0.95 when released")},
    gradient=declaration.gradient(),
  ),
)
