"""A stage of a method as data: labels, a solver, the mode of BatchNorm, a penalty, an average."""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any, Literal

from subtune_jax import masks

PyTree = Any
# penalty(trained, initial, logits, batch) -> scalar added to the loss. `trained` and `initial` are
# the trained leaves now and at the start of the stage (None elsewhere); `batch`: name -> array.
Penalty = Callable[[PyTree, PyTree, Any, Mapping[str, Any]], Any]
# average(running, trained, step) -> running. Evaluation reads the average when there is one.
Average = Callable[[PyTree, PyTree, Any], PyTree]

HEAD_RULE = "/head"
Standardize = Literal["scalar", "feature", "none"]
OPTIMIZERS = ("adam", "sgd", "adabelief", "adadelta", "adagrad", "rmsprop")
SAMPLING = ("uniform", "balanced")
DECAYS = (0.3, 0.6, 0.9)  # shares of the steps after which schedule "steps" falls to a tenth
# Of a field that came later: at its default it is no part of a training's identity in a ledger.
_LATER = {"omit_default": True}


def check_class_weights(value: Any) -> None:
  """Raises ValueError unless it is "none", "balanced" or positive weights, one per class."""
  if value in ("none", "balanced"):
    return
  numbers = isinstance(value, tuple) and all(isinstance(w, int | float) for w in value)
  if not numbers or not value or not all(math.isfinite(w) and w > 0 for w in value):
    raise ValueError(
      f"class_weights is {value!r}; allowed: 'none', 'balanced', or a tuple with a weight above 0 "
      "for each class"
    )


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
    schedule: "cosine" (to 0 over the stage, per step), "constant", or "steps": a tenth of it after
      30, 60 and 90 % of the stage's steps (`DECAYS`, those of VTAB's code).
    warmup: share of the stage's steps with a linear rise from 0, in [0, 1).
    rates: a further multiplier for each tensor, see `TensorRates`; None: no such thing.
    steps_per_epoch: an "epoch" is so many steps, drawn from one permutation of the training set
      after the other; 0: one pass, without the examples that fill no batch.
    leave_out: see `LeaveOut`; None: an epoch is one run.
    class_weights: of the cross-entropy: "none", "balanced" (scikit-learn's, from the labels of the
      training set), or a weight per class; normalised as in `training/class_weights.py`.
    sampling: "uniform", or "balanced": an epoch of as many steps, in which every class of the
      training set comes equally often (`training.batches.balanced_order`).
    accumulate: the gradient of a batch is the mean over so many parts of it, one after the other
      (`training/accumulation.py`), which takes the memory of one part.
  """

  learning_rates: Mapping[str, float]
  epochs: int
  optimizer: Literal["adam", "sgd", "adabelief", "adadelta", "adagrad", "rmsprop"] = "adam"
  momentum: float = 0.9
  nesterov: bool = False
  weight_decay: float = 0.0
  clip_norm: float = 0.0
  schedule: Literal["cosine", "constant", "steps"] = "cosine"
  warmup: float = 0.0
  rates: TensorRates | None = None
  steps_per_epoch: int = dataclasses.field(default=0, metadata=_LATER)
  leave_out: LeaveOut | None = dataclasses.field(default=None, metadata=_LATER)
  class_weights: str | tuple[float, ...] = dataclasses.field(default="none", metadata=_LATER)
  sampling: Literal["uniform", "balanced"] = dataclasses.field(default="uniform", metadata=_LATER)
  accumulate: int = dataclasses.field(default=1, metadata=_LATER)

  def __post_init__(self):
    check_class_weights(self.class_weights)
    if self.sampling not in SAMPLING:
      allowed = ", ".join(map(repr, SAMPLING))
      raise ValueError(f"sampling is {self.sampling!r}; allowed: {allowed}")
    if self.sampling == self.class_weights == "balanced":
      raise ValueError(
        "class_weights and sampling are both 'balanced', which counts a rare class twice over; "
        "balance by one of them"
      )
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
    if self.accumulate < 1:
      raise ValueError(f"accumulate is {self.accumulate}; give 1 (the batch in one), or more parts")
    if self.schedule not in ("cosine", "constant", "steps"):
      raise ValueError(f"schedule is {self.schedule!r}; allowed: 'cosine', 'constant', 'steps'")
    if self.schedule == "steps" and not self.warmup < DECAYS[0]:
      raise ValueError(f"warmup is {self.warmup}; with schedule 'steps' it ends before {DECAYS[0]}")
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
    class_weights: as in `Gradient`; of scikit-learn's `LogisticRegression(class_weight=)`.
  """

  l2: tuple[float, ...]
  standardize: Standardize = "scalar"
  max_steps: int | None = dataclasses.field(default=None, metadata=_LATER)
  rescale: bool = dataclasses.field(default=False, metadata=_LATER)
  class_weights: str | tuple[float, ...] = dataclasses.field(default="none", metadata=_LATER)

  def __post_init__(self):
    check_class_weights(self.class_weights)
    if not self.l2 or not all(value > 0 for value in self.l2):
      raise ValueError(f"l2 is {self.l2}; it must hold at least one strength, all above 0")
    if self.max_steps is not None and self.max_steps < 1:
      raise ValueError(f"max_steps is {self.max_steps}; give at least 1, or None to converge")

  @property
  def num_settings(self) -> int:
    """How many heads it chooses from."""
    return len(self.l2)

  def fixed(self, setting: Any) -> "LBFGS":
    """The solver with the setting that a finished stage has chosen (`setting` of its row)."""
    return dataclasses.replace(self, l2=(setting,))


@dataclasses.dataclass(frozen=True)
class SelectedFeatures(LBFGS):
  """A head on features of all units that a group lasso ranks (`training/selected_features.py`).

  Attributes:
    strengths: of the group lasso, as shares of the one at which all weights are zero.
    fractions: of all features, that are kept.
  """

  strengths: tuple[float, ...] = ()
  fractions: tuple[float, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    for name in ("strengths", "fractions"):
      values = getattr(self, name)
      if not values or not all(0 < value <= 1 for value in values):
        raise ValueError(f"{name} is {values}; give at least one, each in (0, 1]")

  @property
  def num_settings(self) -> int:
    """See `LBFGS`."""
    return len(self.l2) * len(self.strengths) * len(self.fractions)

  def fixed(self, setting: Any) -> "SelectedFeatures":
    """See `LBFGS`."""
    l2, strength, fraction = setting
    return dataclasses.replace(self, l2=(l2,), strengths=(strength,), fractions=(fraction,))


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
    reinit: blocks that get fresh weights and running statistics, by the seed, before the first
      stage of the method; no stage but the first has to name them.
  """

  name: str
  rules: Mapping[str, masks.Selector]
  solver: Gradient | LBFGS
  norm_mode: Literal["batch", "running"] = "batch"
  penalty: Penalty | None = None
  average: Average | None = None
  reinit: tuple[str, ...] = dataclasses.field(default=(), metadata=_LATER)

  @property
  def gradient(self) -> Gradient:
    """The solver, of a stage that is trained by gradient steps."""
    assert isinstance(self.solver, Gradient)
    return self.solver

  def __post_init__(self):
    if isinstance(self.reinit, str):
      raise ValueError(f"reinit is {self.reinit!r}; give block names, such as ({self.reinit!r},)")
    if self.norm_mode not in ("batch", "running"):
      raise ValueError(f"norm_mode is {self.norm_mode!r}; allowed: 'batch', 'running'")
    if isinstance(self.solver, Gradient) and set(self.solver.learning_rates) != set(self.rules):
      raise ValueError(
        f"stage {self.name!r}: learning rates for {sorted(self.solver.learning_rates)}, "
        f"labels {sorted(self.rules)}; each label needs exactly one learning rate"
      )
    if type(self.solver) is LBFGS and dict(self.rules) != {masks.HEAD: HEAD_RULE}:
      raise ValueError(f"stage {self.name!r}: L-BFGS trains the head only, got {dict(self.rules)}")


Method = tuple[Stage, ...]


def tune(
  name: str,
  selector: masks.Selector,
  learning_rate: float,
  head_learning_rate: float | None,
  stage: Mapping[str, Any],
) -> Stage:
  """A stage that trains the head and whatever `selector` picks."""
  head_rate = learning_rate if head_learning_rate is None else head_learning_rate
  rates = {masks.HEAD: head_rate, masks.TUNED: learning_rate}
  return gradient_stage(name, {masks.TUNED: selector}, rates, stage)


def gradient_stage(
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


def balanced(method: Method, class_weights: str | tuple[float, ...], sampling: str) -> Method:
  """The method with these class weights in every stage, and this sampling where it has batches.

  Errors: see `Gradient`.
  """
  stages = []
  for stage in method:
    fields: dict[str, Any] = {"class_weights": class_weights}
    if isinstance(stage.solver, Gradient):
      fields["sampling"] = sampling
    stages.append(dataclasses.replace(stage, solver=dataclasses.replace(stage.solver, **fields)))
  return tuple(stages)


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
