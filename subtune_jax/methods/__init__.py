"""Training methods as data: a method is a tuple of stages, and one train loop runs them all.

A function builds the stages (`sub_tuning(blocks, lr)`); `DECLARED` says of each method, by name,
what configs, help, the README and reports need. A new relative of fine-tuning is a function and a
declaration in one file of this folder, or a `Stage` of your own, not a branch in the loop.
"""

from subtune_jax.methods import adapted as _adapted
from subtune_jax.methods import auto_rates as _auto_rates
from subtune_jax.methods import fine_tuning as _fine_tuning
from subtune_jax.methods import probing as _probing
from subtune_jax.methods import regularised as _regularised
from subtune_jax.methods import selected as _selected
from subtune_jax.methods import side as _side
from subtune_jax.methods import subset as _subset
from subtune_jax.methods.adapted import adapter_tuning
from subtune_jax.methods.auto_rates import SNR_THRESHOLD, auto_rgn, auto_snr
from subtune_jax.methods.declaration import Context, Declaration, Option, markdown, options_of
from subtune_jax.methods.fine_tuning import (
  frozen_embedding,
  full_fine_tuning,
  layerwise_decay,
  lp_ft,
)
from subtune_jax.methods.probing import DEFAULT_L2, head_only, linear_probing
from subtune_jax.methods.regularised import l2_sp, lolsgd
from subtune_jax.methods.regularizers import L2SP, Distillation, FeatureRank
from subtune_jax.methods.selected import head2toe
from subtune_jax.methods.selectors import (
  Outside,
  backbone,
  batch_norm,
  biases,
  without_batch_norm,
)
from subtune_jax.methods.side import side_tuning
from subtune_jax.methods.stage import (
  DECAYS,
  HEAD_RULE,
  LBFGS,
  OPTIMIZERS,
  SAMPLING,
  Average,
  Gradient,
  LeaveOut,
  Method,
  Penalty,
  SelectedFeatures,
  Stage,
  TensorRates,
  balanced,
  without_head,
)
from subtune_jax.methods.subset import (
  batch_norm_only,
  bias_only,
  gradual_unfreezing,
  sub_tuning,
)
from subtune_jax.methods.weight_averaging import EMA, SWA

_ORDER = (
  "lp", "ft", "lp_ft", "subtuning", "gradual_unfreezing", "auto_rgn", "auto_snr", "l2_sp", "ema",
)  # fmt: skip
_ALL = {
  own.name: own
  for family in (
    _probing,
    _fine_tuning,
    _subset,
    _auto_rates,
    _regularised,
    _side,
    _adapted,
    _selected,
  )
  for own in family.DECLARATIONS
}
# Name -> declaration, in the order of tables.
DECLARED: dict[str, Declaration] = {name: _ALL[name] for name in _ORDER} | _ALL
