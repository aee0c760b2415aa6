"""Training methods as data: a method is a tuple of stages, and one train loop runs them all.

  linear_probing()            head                       (convex: L-BFGS)
  full_fine_tuning(lr)        everything
  sub_tuning(blocks, lr)      head + blocks              SubTuning, arXiv 2302.06354
  lp_ft(lr)                   head, then everything      LP-FT, arXiv 2202.10054
  gradual_unfreezing(groups)  head, head + last, ...     ULMFiT, arXiv 1801.06146
  l2_sp(lr, weight)           everything, drawn back     L2-SP, arXiv 1802.01483
  layerwise_decay(lr, blocks) everything, early blocks   BEiT, arXiv 2106.08254
                              at lower rates
  frozen_embedding(lr)        all but the first block    arXiv 2211.09359
  batch_norm_only(lr)         head + BatchNorm's scales  arXiv 2003.00152
  bias_only(lr)               head + biases              BitFit, arXiv 2106.10199
  side_tuning(lr)             head + a side network      arXiv 1912.13503 (models/side.py)
  head_only(lr)               head, from where it is     by gradient steps
  lolsgd(lr, leave_out)       everything, averaged over  arXiv 2311.01420
                              runs without some classes
  without_head(method)        any of these, head frozen
  auto_rgn(lr), auto_snr(lr)  everything, each tensor    surgical fine-tuning, arXiv 2210.11466
                              at a rate of its own

A new relative of fine-tuning is a new function here (or a `Stage` of your own), not a branch in the
loop.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, Literal

from subtune_jax import hooks, masks

PyTree = Any
# penalty(trained, initial, logits, batch) -> scalar added to the loss. `trained` and `initial` are
# the trained leaves now and at the start of the stage (None elsewhere); `batch`: name -> array.
Penalty = Callable[[PyTree, PyTree, Any, Mapping[str, Any]], Any]
# average(running, trained, step) -> running. Evaluation reads the average when there is one.
Average = Callable[[PyTree, PyTree, Any], PyTree]

HEAD_RULE = "/head"


def backbone(path: str, leaf: Any) -> bool:
  """Selects every leaf outside the head."""
  del leaf
  return path.split("/")[0] != "head"


def batch_norm(path: str, leaf: Any) -> bool:
  """Selects BatchNorm's scales and biases."""
  return backbone(path, leaf) and "bn" in path.split("/")


def without_batch_norm(path: str, leaf: Any) -> bool:
  """Selects every leaf outside the head but BatchNorm's scales and biases."""
  return backbone(path, leaf) and not batch_norm(path, leaf)


def biases(path: str, leaf: Any) -> bool:
  """Selects every leaf outside the head that is called "bias", those of normalisations too."""
  return backbone(path, leaf) and path.split("/")[-1] == "bias"


@dataclasses.dataclass(frozen=True)
class Outside:
  """Selects every leaf outside the head and outside the named blocks."""

  blocks: tuple[str, ...]

  def __call__(self, path: str, leaf: Any) -> bool:
    return backbone(path, leaf) and not any(f"{path}/".startswith(f"{b}/") for b in self.blocks)


@dataclasses.dataclass(frozen=True)
class TensorRates:
  """A multiplier of the learning rate for each trained tensor, measured anew before every epoch.

  The formulas are in `training/auto_rates.py`. A multiplier scales the whole update of its tensor,
  weight decay included: at 0 the tensor stays as it is for the epoch.

  Attributes:
    kind: "rgn" or "snr" as the paper defines them, "rgn_released" or "snr_released" as its code
      computes them. The released ones also start every epoch with fresh optimiser moments.
    num_batches: the measure reads the first so many batches of the epoch; None reads all of them.
    threshold: of the "snr" kinds: a tensor below it is frozen for the epoch.
  """

  kind: Literal["rgn", "snr", "rgn_released", "snr_released"]
  num_batches: int | None = 5
  threshold: float | None = None

  def __post_init__(self):
    kinds = ("rgn", "snr", "rgn_released", "snr_released")
    if self.kind not in kinds:
      raise ValueError(f"kind is {self.kind!r}; allowed: {', '.join(map(repr, kinds))}")
    if self.num_batches is not None and self.num_batches < 1:
      raise ValueError(f"num_batches is {self.num_batches}; give at least 1, or None for all")
    if self.kind.startswith("snr") == (self.threshold is None):
      raise ValueError(
        f"threshold is {self.threshold} for {self.kind!r}; the 'snr' kinds need one, and only they"
      )
    if self.threshold is not None and not self.threshold >= 0:
      raise ValueError(f"threshold is {self.threshold}; it must be at least 0")


@dataclasses.dataclass(frozen=True)
class LeaveOut:
  """An epoch as several runs from one state, each without some of the classes, then averaged.

  Attributes:
    runs: how many, of as many steps each as the epoch has.
    share: of the classes in the training set that each run leaves out, drawn anew every time; at
      least one class is left out and one kept.
  """

  runs: int
  share: float

  def __post_init__(self):
    if self.runs < 1:
      raise ValueError(f"runs is {self.runs}; it must be at least 1")
    if not 0 < self.share < 1:
      raise ValueError(f"share is {self.share}; it must lie in (0, 1)")


OPTIMIZERS = ("adam", "sgd", "adabelief", "adadelta", "adagrad", "rmsprop")
# Of a field that came later: at its default it is no part of a training's identity in a ledger.
_LATER = {"omit_default": True}


@dataclasses.dataclass(frozen=True)
class Gradient:
  """Mini-batch gradient steps.

  Attributes:
    learning_rates: label -> peak learning rate. Every label of the stage needs one.
    epochs: passes over the training set.
    optimizer: "adam" (decoupled weight decay, so AdamW when `weight_decay` > 0), "sgd",
      "adabelief", "adadelta", "adagrad" or "rmsprop", with optax's constants.
    momentum: of "sgd"; 0 turns it off.
    nesterov: of "sgd".
    weight_decay: decoupled for "adam" and "adabelief", added to the gradient for the others;
      trained leaves only.
    clip_norm: clips the global norm of the trained leaves' gradient; 0 turns it off.
    schedule: "cosine" (to 0 over the stage, per step) or "constant".
    warmup: share of the stage's steps with a linear rise from 0, in [0, 1).
    rates: a further multiplier for each tensor, see `TensorRates`; None: no such thing.
    steps_per_epoch: an "epoch" is so many steps, drawn from one permutation of the training set
      after the other; 0: one pass, without the examples that fill no batch.
    leave_out: see `LeaveOut`; None: an epoch is one run.
  """

  learning_rates: Mapping[str, float]
  epochs: int
  optimizer: Literal["adam", "sgd", "adabelief", "adadelta", "adagrad", "rmsprop"] = "adam"
  momentum: float = 0.9
  nesterov: bool = False
  weight_decay: float = 0.0
  clip_norm: float = 0.0
  schedule: Literal["cosine", "constant"] = "cosine"
  warmup: float = 0.0
  rates: TensorRates | None = None
  steps_per_epoch: int = dataclasses.field(default=0, metadata=_LATER)
  leave_out: LeaveOut | None = dataclasses.field(default=None, metadata=_LATER)

  def __post_init__(self):
    for label, rate in self.learning_rates.items():
      if not rate >= 0:
        raise ValueError(f"learning rate of {label!r} is {rate}; it must be at least 0")
    if self.epochs < 1:
      raise ValueError(f"epochs is {self.epochs}; it must be at least 1")
    if self.optimizer not in OPTIMIZERS:
      allowed = ", ".join(map(repr, OPTIMIZERS))
      raise ValueError(f"optimizer is {self.optimizer!r}; allowed: {allowed}")
    if self.rates is not None and self.optimizer not in ("adam", "sgd"):
      raise ValueError(f"rates go with 'adam' and 'sgd', and optimizer is {self.optimizer!r}")
    if self.steps_per_epoch < 0:
      raise ValueError(f"steps_per_epoch is {self.steps_per_epoch}; give 0 for one pass, or more")
    if self.schedule not in ("cosine", "constant"):
      raise ValueError(f"schedule is {self.schedule!r}; allowed: 'cosine', 'constant'")
    if not 0 <= self.warmup < 1:
      raise ValueError(f"warmup is {self.warmup}; it is a share of the steps, in [0, 1)")
    for name in ("weight_decay", "clip_norm", "momentum"):
      if not getattr(self, name) >= 0:
        raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")


@dataclasses.dataclass(frozen=True)
class LBFGS:
  """L2-regularised multinomial logistic regression on frozen features (`training/probe.py`).

  Attributes:
    l2: strengths tried, as in mean cross-entropy + l2/2 * |W|^2; chosen on the validation split.
    standardize: "scalar", "feature" or "none"; folded back into the head.
    max_steps: stop after so many L-BFGS steps from the zero head; None: converged.
    rescale: give the head the standard deviation of the one that it replaces (LP-FT's code,
      `normalize_lp`); no prediction changes, but the loss does and so does fine-tuning from there.
  """

  l2: tuple[float, ...]
  standardize: str = "scalar"
  max_steps: int | None = dataclasses.field(default=None, metadata=_LATER)
  rescale: bool = dataclasses.field(default=False, metadata=_LATER)

  def __post_init__(self):
    if not self.l2 or not all(value > 0 for value in self.l2):
      raise ValueError(f"l2 is {self.l2}; it must hold at least one strength, all above 0")
    if self.max_steps is not None and self.max_steps < 1:
      raise ValueError(f"max_steps is {self.max_steps}; give at least 1, or None to converge")


@dataclasses.dataclass(frozen=True)
class Stage:
  """One training of one labelling.

  Attributes:
    name: for logs and reports.
    rules: label -> selector (`masks.label`); what no rule claims is frozen.
    solver: how the labelled leaves are trained.
    norm_mode: BatchNorm of blocks with a trained leaf: "batch" (batch statistics, running ones
      updated) or "running" (running statistics, unchanged). Frozen blocks always run on "running".
    penalty: added to the loss, see `Penalty`.
    average: running average of the trained leaves, see `Average`.
  """

  name: str
  rules: Mapping[str, masks.Selector]
  solver: Gradient | LBFGS
  norm_mode: Literal["batch", "running"] = "batch"
  penalty: Penalty | None = None
  average: Average | None = None

  def __post_init__(self):
    if self.norm_mode not in ("batch", "running"):
      raise ValueError(f"norm_mode is {self.norm_mode!r}; allowed: 'batch', 'running'")
    if isinstance(self.solver, Gradient) and set(self.solver.learning_rates) != set(self.rules):
      raise ValueError(
        f"stage {self.name!r}: learning rates for {sorted(self.solver.learning_rates)}, "
        f"labels {sorted(self.rules)}; each label needs exactly one learning rate"
      )
    if isinstance(self.solver, LBFGS) and dict(self.rules) != {masks.HEAD: HEAD_RULE}:
      raise ValueError(f"stage {self.name!r}: L-BFGS trains the head only, got {dict(self.rules)}")


Method = tuple[Stage, ...]

# 1e-7 ... 1e2 as inverse strengths of 1,000 examples, the grid of the LP-FT code, thinned.
DEFAULT_L2 = tuple(10.0 ** (k / 2) for k in range(2, -13, -1))

# Of Auto-SNR, on the scale from the noisiest tensor (0) to the clearest (1).
SNR_THRESHOLD = 0.05


def linear_probing(
  *,
  l2: Sequence[float] = DEFAULT_L2,
  standardize: str = "scalar",
  max_steps: int | None = None,
  rescale: bool = False,
) -> Method:
  """Linear probing: the head alone, by L-BFGS (LP-FT, section 2). The fields are `LBFGS`'s."""
  solver = LBFGS(tuple(l2), standardize, max_steps, rescale)
  return (Stage(name="head", rules={masks.HEAD: HEAD_RULE}, solver=solver, norm_mode="running"),)


def _tune(
  name: str,
  selector: masks.Selector,
  learning_rate: float,
  head_learning_rate: float | None,
  stage: Mapping[str, Any],
) -> Stage:
  """A stage that trains the head and whatever `selector` picks."""
  head_rate = learning_rate if head_learning_rate is None else head_learning_rate
  rates = {masks.HEAD: head_rate, masks.TUNED: learning_rate}
  return _gradient_stage(name, {masks.TUNED: selector}, rates, stage)


def _gradient_stage(
  name: str,
  rules: Mapping[str, masks.Selector],
  rates: Mapping[str, float],
  fields: Mapping[str, Any],
) -> Stage:
  """A stage of gradient steps on the head and what the rules pick.

  Args:
    name: of the stage.
    rules: of all labels but the head's.
    rates: of all labels.
    fields: further ones of `Gradient` and `Stage`.
  """
  own = {f.name for f in dataclasses.fields(Stage)} & set(fields)
  solver = Gradient(rates, **{k: v for k, v in fields.items() if k not in own})
  rules = {masks.HEAD: HEAD_RULE, **rules}
  return Stage(name=name, rules=rules, solver=solver, **{k: fields[k] for k in own})


def full_fine_tuning(
  learning_rate: float, *, head_learning_rate: float | None = None, **stage: Any
) -> Method:
  """Every parameter. `stage` holds further fields of `Gradient` and `Stage` (epochs, ...)."""
  return (_tune("all", backbone, learning_rate, head_learning_rate, stage),)


def sub_tuning(
  blocks: Sequence[str],
  learning_rate: float,
  *,
  head_learning_rate: float | None = None,
  **stage: Any,
) -> Method:
  """SubTuning(S): the head and the named blocks (SubTuning, section 2).

  Surgical fine-tuning (arXiv 2210.11466) is this with one contiguous run of blocks. Where the head
  already knows the classes it is frozen there too: a `Stage` without a rule for the head.
  """
  if isinstance(blocks, str) or not blocks:
    raise ValueError(f"blocks is {blocks!r}; give a sequence of block names, e.g. ('block14',)")
  selector = tuple("/" + block for block in blocks)
  return (_tune("+".join(blocks), selector, learning_rate, head_learning_rate, stage),)


def lp_ft(
  learning_rate: float,
  *,
  head_learning_rate: float | None = None,
  l2: Sequence[float] = DEFAULT_L2,
  standardize: str = "scalar",
  max_steps: int | None = None,
  rescale: bool = False,
  norm_mode: Literal["batch", "running"] = "running",
  **stage: Any,
) -> Method:
  """LP-FT: the probe, then every parameter from it, BatchNorm in eval mode as in the paper.

  Args:
    learning_rate: of the second stage.
    head_learning_rate: of its head; `learning_rate` when None.
    l2: as the three below, of the probe: a field of `LBFGS`.
    standardize: see `LBFGS`.
    max_steps: see `LBFGS`.
    rescale: see `LBFGS`.
    norm_mode: of the second stage.
    **stage: further fields of `Gradient` and `Stage`.
  """
  probe = linear_probing(l2=l2, standardize=standardize, max_steps=max_steps, rescale=rescale)
  return probe + full_fine_tuning(
    learning_rate, head_learning_rate=head_learning_rate, norm_mode=norm_mode, **stage
  )


def gradual_unfreezing(
  groups: Sequence[Sequence[str]],
  learning_rate: float,
  *,
  head_learning_rate: float | None = None,
  **stage: Any,
) -> Method:
  """Head, then head + the last group of blocks, then the one before too, ...

  Args:
    groups: disjoint groups of block names, input to output. The last stage trains all of them.
    learning_rate: of the blocks, in every stage.
    head_learning_rate: of the head; `learning_rate` when None.
    **stage: further fields of `Gradient` and `Stage`; `epochs` is per stage.
  """
  head_rate = learning_rate if head_learning_rate is None else head_learning_rate
  stages = [*head_only(head_rate, **stage)]
  for first in range(len(groups) - 1, -1, -1):
    blocks = [block for group in groups[first:] for block in group]
    stages += sub_tuning(blocks, learning_rate, head_learning_rate=head_rate, **stage)
  return tuple(stages)


def l2_sp(learning_rate: float, *, weight: float, head_weight: float = 0.0, **stage: Any) -> Method:
  """Full fine-tuning with `hooks.L2SP`: a penalty on the distance to the start (L2-SP)."""
  return full_fine_tuning(learning_rate, penalty=hooks.L2SP(weight, head_weight), **stage)


def batch_norm_only(
  learning_rate: float, *, head_learning_rate: float | None = None, **stage: Any
) -> Method:
  """The head and the scales and biases of BatchNorm (arXiv 2003.00152)."""
  return (_tune("batch norm", batch_norm, learning_rate, head_learning_rate, stage),)


def bias_only(
  learning_rate: float, *, head_learning_rate: float | None = None, **stage: Any
) -> Method:
  """The head and every bias, those of normalisations included (BitFit, arXiv 2106.10199)."""
  return (_tune("biases", biases, learning_rate, head_learning_rate, stage),)


def frozen_embedding(
  learning_rate: float,
  *,
  blocks: Sequence[str] = ("stem",),
  head_learning_rate: float | None = None,
  **stage: Any,
) -> Method:
  """Everything but the first block ("How to fine-tune vision models with SGD", arXiv 2211.09359).

  Args:
    learning_rate: of everything else.
    blocks: what stays frozen: ("stem",) of a convolutional network, ("embedding",) of a ViT.
    head_learning_rate: of the head; `learning_rate` when None.
    **stage: further fields of `Gradient` and `Stage`.
  """
  if isinstance(blocks, str) or not blocks:
    raise ValueError(f"blocks is {blocks!r}; give a sequence of block names, e.g. ('stem',)")
  selector = Outside(tuple(blocks))
  return (_tune(f"all but {'+'.join(blocks)}", selector, learning_rate, head_learning_rate, stage),)


def layerwise_decay(
  learning_rate: float,
  *,
  blocks: Sequence[str],
  decay: float,
  head_learning_rate: float | None = None,
  **stage: Any,
) -> Method:
  """Everything; the rate of a block is `decay` to the power of its distance from the head.

  The last block has the rate learning_rate * decay, the one before it learning_rate * decay^2, ...
  as in BEiT (arXiv 2106.08254) and ELECTRA. At decay 1 it is full fine-tuning.

  Args:
    learning_rate: that of the head, when it has none of its own.
    blocks: all blocks of the network, input to output (`model.block_names`).
    decay: in (0, 1].
    head_learning_rate: of the head; `learning_rate` when None.
    **stage: further fields of `Gradient` and `Stage`.
  """
  if not 0 < decay <= 1:
    raise ValueError(f"decay is {decay}; it must lie in (0, 1]")
  if isinstance(blocks, str) or not blocks:
    raise ValueError(f"blocks is {blocks!r}; give all blocks of the network, model.block_names")
  head_rate = learning_rate if head_learning_rate is None else head_learning_rate
  rates = {masks.HEAD: head_rate}
  rates |= {b: learning_rate * decay**depth for depth, b in enumerate(reversed(blocks), start=1)}
  rules = {block: "/" + block for block in blocks}
  return (_gradient_stage("all", rules, rates, stage),)


def head_only(learning_rate: float, **stage: Any) -> Method:
  """The head alone by gradient steps, from where it is: a head that knows the classes.

  A head that was just drawn is better solved for: `linear_probing`. `stage` holds further fields of
  `Gradient` and `Stage`; a `head_learning_rate` among them takes the place of `learning_rate`.
  """
  rate = stage.pop("head_learning_rate", None)
  rate = learning_rate if rate is None else rate
  return (_gradient_stage("head", {}, {masks.HEAD: rate}, stage),)


def lolsgd(
  learning_rate: float,
  *,
  leave_out: LeaveOut,
  head_learning_rate: float | None = None,
  **stage: Any,
) -> Method:
  """Full fine-tuning whose epochs are means of runs that leave out classes (LOLSGD).

  What a run owes to the classes that it saw differs from run to run and cancels in the mean; what
  all owe to the domain stays ("Holistic transfer", arXiv 2311.01420, leave-out local SGD).
  """
  return full_fine_tuning(
    learning_rate, head_learning_rate=head_learning_rate, leave_out=leave_out, **stage
  )


def without_head(method: Method) -> Method:
  """The method with the head frozen, for a head that knows the classes (a frozen classifier).

  Raises:
    ValueError: a stage that trains nothing else.
  """
  stages = []
  for stage in method:
    rules = {label: rule for label, rule in stage.rules.items() if label != masks.HEAD}
    if not rules or not isinstance(stage.solver, Gradient):
      raise ValueError(f"stage {stage.name!r} trains the head alone; it cannot do without it")
    rates = {label: stage.solver.learning_rates[label] for label in rules}
    solver = dataclasses.replace(stage.solver, learning_rates=rates)
    stages.append(dataclasses.replace(stage, rules=rules, solver=solver))
  return tuple(stages)


def side_tuning(
  learning_rate: float, *, head_learning_rate: float | None = None, **stage: Any
) -> Method:
  """The head and the side network of a `models.side.SideTuned` (arXiv 1912.13503)."""
  return (_tune("side", "/side/tuned", learning_rate, head_learning_rate, stage),)


def auto_rgn(
  learning_rate: float,
  *,
  head_learning_rate: float | None = None,
  num_batches: int | None = 5,
  released: bool = False,
  **stage: Any,
) -> Method:
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
  rates = TensorRates("rgn_released" if released else "rgn", num_batches)
  return _auto(rates, learning_rate, head_learning_rate, released, stage)


def auto_snr(
  learning_rate: float,
  *,
  head_learning_rate: float | None = None,
  threshold: float | None = None,
  num_batches: int | None = 5,
  released: bool = False,
  **stage: Any,
) -> Method:
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
  rates = TensorRates("snr_released" if released else "snr", num_batches, threshold)
  return _auto(rates, learning_rate, head_learning_rate, released, stage)


def _auto(
  rates: TensorRates,
  learning_rate: float,
  head_learning_rate: float | None,
  released: bool,
  stage: Mapping[str, Any],
) -> Method:
  """Everything, or everything but BatchNorm, with a rate for each tensor."""
  selector = without_batch_norm if released else backbone
  return (_tune("all", selector, learning_rate, head_learning_rate, {**stage, "rates": rates}),)
