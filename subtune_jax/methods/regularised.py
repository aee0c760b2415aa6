"""Full fine-tuning with a penalty, or read as an average."""

import functools
from typing import Any

from subtune_jax.methods import declaration, fine_tuning, regularizers, weight_averaging
from subtune_jax.methods import stage as stage_lib
from subtune_jax.methods.declaration import Declaration, Option


def l2_sp(
  learning_rate: float, *, weight: float, head_weight: float = 0.0, **stage: Any
) -> stage_lib.Method:
  """Full fine-tuning with `L2SP`: a penalty on the distance to the start (L2-SP)."""
  return fine_tuning.full_fine_tuning(
    learning_rate, penalty=regularizers.L2SP(weight, head_weight), **stage
  )


def lolsgd(
  learning_rate: float,
  *,
  leave_out: stage_lib.LeaveOut,
  head_learning_rate: float | None = None,
  **stage: Any,
) -> stage_lib.Method:
  """Full fine-tuning whose epochs are means of runs that leave out classes (LOLSGD).

  What a run owes to the classes that it saw differs from run to run and cancels in the mean; what
  all owe to the domain stays ("Holistic transfer", arXiv 2311.01420, leave-out local SGD).
  """
  return fine_tuning.full_fine_tuning(
    learning_rate, head_learning_rate=head_learning_rate, leave_out=leave_out, **stage
  )


def _tuned(**fields: Any) -> declaration.Builder:
  return functools.partial(fine_tuning.full_fine_tuning, **fields)


DECLARATIONS = (
  Declaration(
    name="l2_sp",
    title="L2-SP",
    source="[paper](https://arxiv.org/abs/1802.01483)",
    trains="everything, drawn back to the start",
    call="l2_sp(1e-3, weight=0.01, epochs=8)",
    build=lambda own, context: functools.partial(
      l2_sp, weight=own.weight, head_weight=own.head_weight
    ),
    options={
      "weight": Option(0.01, "of |theta - theta_0|^2, head left out"),
      "head_weight": Option(0.0, "of |w|^2 over the head"),
    },
    gradient=declaration.gradient(),
  ),
  Declaration(
    name="ema",
    title="Fine-tuning, EMA",
    trains="everything, read as a running average",
    call="full_fine_tuning(1e-3, average=EMA(0.95), epochs=8)",
    build=lambda own, context: _tuned(average=weight_averaging.EMA(own.decay)),
    options={"decay": Option(0.95, "of the running average of full fine-tuning's parameters")},
    gradient=declaration.gradient(),
  ),
  Declaration(
    name="swa",
    title="SWA",
    source="[paper](https://arxiv.org/abs/1803.05407)",
    trains="everything, read as the mean of late steps",
    call="full_fine_tuning(1e-3, average=SWA(first_step), epochs=8)",
    build=lambda own, context: _tuned(
      average=weight_averaging.SWA(own.first_epoch * context.steps_per_epoch)
    ),
    options={"first_epoch": Option(4, "averaged from the end of so many epochs on")},
    gradient=declaration.gradient(),
    needs=frozenset({"steps"}),
  ),
  Declaration(
    name="feature_rank",
    title="Feature rank",
    source="[FedDecorr](https://arxiv.org/abs/2210.00226)",
    trains="everything, correlated features penalised",
    call="full_fine_tuning(1e-3, penalty=FeatureRank(1.0), epochs=8)",
    build=lambda own, context: _tuned(penalty=regularizers.FeatureRank(own.weight)),
    options={"weight": Option(1.0, "of |K|^2 / d^2")},
    gradient=declaration.gradient(),
  ),
  Declaration(
    name="distillation",
    title="Distillation",
    source="[LwF](https://arxiv.org/abs/1606.09282)",
    trains="everything, absent classes held to the source's logits",
    call="full_fine_tuning(1e-3, penalty=Distillation(1.0), epochs=8)",
    build=lambda own, context: _tuned(
      penalty=regularizers.Distillation(own.weight, own.temperature)
    ),
    options={
      "weight": Option(1.0, "of T^2 KL over the absent classes"),
      "temperature": Option(1.0, "T"),
    },
    gradient=declaration.gradient(),
    needs=frozenset({"source_logits"}),
  ),
  Declaration(
    name="lolsgd",
    title="LOLSGD",
    source="[paper](https://arxiv.org/abs/2311.01420)",
    trains="everything, averaged over runs without some classes",
    call="lolsgd(1e-3, leave_out=LeaveOut(3, 0.5), epochs=8)",
    build=lambda own, context: functools.partial(
      lolsgd, leave_out=stage_lib.LeaveOut(own.runs, own.share)
    ),
    options={
      "runs": Option(3, "local runs of each epoch"),
      "share": Option(0.5, "of the classes that each of them leaves out"),
    },
    gradient=declaration.gradient(),
  ),
)
