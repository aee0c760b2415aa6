"""Training methods as data: a method is a tuple of stages, and one train loop runs them all.

  linear_probing()            head                       (convex: L-BFGS)
  full_fine_tuning(lr)        everything
  sub_tuning(blocks, lr)      head + blocks              SubTuning, arXiv 2302.06354
  lp_ft(lr)                   head, then everything      LP-FT, arXiv 2202.10054
  gradual_unfreezing(groups)  head, head + last, ...     ULMFiT, arXiv 1801.06146

A new relative of fine-tuning is a new function here (or a `Stage` of your own), not a branch in the
loop.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, Literal

from subtune_jax import masks

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


@dataclasses.dataclass(frozen=True)
class Gradient:
  """Mini-batch gradient steps.

  Attributes:
    learning_rates: label -> peak learning rate. Every label of the stage needs one.
    epochs: passes over the training set.
    optimizer: "adam" (decoupled weight decay, so AdamW when `weight_decay` > 0) or "sgd".
    momentum: of "sgd"; 0 turns it off.
    nesterov: of "sgd".
    weight_decay: decoupled for "adam", added to the gradient for "sgd"; trained leaves only.
    clip_norm: clips the global norm of the trained leaves' gradient; 0 turns it off.
    schedule: "cosine" (to 0 over the stage, per step) or "constant".
    warmup: share of the stage's steps with a linear rise from 0, in [0, 1).
  """

  learning_rates: Mapping[str, float]
  epochs: int
  optimizer: Literal["adam", "sgd"] = "adam"
  momentum: float = 0.9
  nesterov: bool = False
  weight_decay: float = 0.0
  clip_norm: float = 0.0
  schedule: Literal["cosine", "constant"] = "cosine"
  warmup: float = 0.0

  def __post_init__(self):
    for label, rate in self.learning_rates.items():
      if not rate >= 0:
        raise ValueError(f"learning rate of {label!r} is {rate}; it must be at least 0")
    if self.epochs < 1:
      raise ValueError(f"epochs is {self.epochs}; it must be at least 1")
    if self.optimizer not in ("adam", "sgd"):
      raise ValueError(f"optimizer is {self.optimizer!r}; allowed: 'adam', 'sgd'")
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
  """

  l2: tuple[float, ...]
  standardize: str = "scalar"

  def __post_init__(self):
    if not self.l2 or not all(value > 0 for value in self.l2):
      raise ValueError(f"l2 is {self.l2}; it must hold at least one strength, all above 0")


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


def linear_probing(*, l2: Sequence[float] = DEFAULT_L2, standardize: str = "scalar") -> Method:
  """Linear probing: the head alone, by L-BFGS (LP-FT, section 2)."""
  solver = LBFGS(l2=tuple(l2), standardize=standardize)
  return (Stage(name="head", rules={masks.HEAD: HEAD_RULE}, solver=solver, norm_mode="running"),)


def _tune(
  name: str,
  selector: masks.Selector,
  learning_rate: float,
  head_learning_rate: float | None,
  stage: Mapping[str, Any],
) -> Stage:
  """A stage that trains the head and whatever `selector` picks."""
  own = {f.name for f in dataclasses.fields(Stage)} & set(stage)
  head_rate = learning_rate if head_learning_rate is None else head_learning_rate
  rates = {masks.HEAD: head_rate, masks.TUNED: learning_rate}
  solver = Gradient(rates, **{k: v for k, v in stage.items() if k not in own})
  rules = {masks.HEAD: HEAD_RULE, masks.TUNED: selector}
  return Stage(name=name, rules=rules, solver=solver, **{k: stage[k] for k in own})


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
  """SubTuning(S): the head and the named blocks (SubTuning, section 2)."""
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
  norm_mode: Literal["batch", "running"] = "running",
  **stage: Any,
) -> Method:
  """LP-FT: the probe, then every parameter from it, BatchNorm in eval mode as in the paper."""
  probe = linear_probing(l2=l2, standardize=standardize)
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
  own = {f.name for f in dataclasses.fields(Stage)} & set(stage)
  solver = Gradient({masks.HEAD: head_rate}, **{k: v for k, v in stage.items() if k not in own})
  head = {k: stage[k] for k in own}
  stages = [Stage(name="head", rules={masks.HEAD: HEAD_RULE}, solver=solver, **head)]
  for first in range(len(groups) - 1, -1, -1):
    blocks = [block for group in groups[first:] for block in group]
    stages += sub_tuning(blocks, learning_rate, head_learning_rate=head_rate, **stage)
  return tuple(stages)
