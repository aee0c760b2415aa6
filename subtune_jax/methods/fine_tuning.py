"""Methods that train everything, or all but the first block."""

from collections.abc import Sequence
import functools
from typing import Any, Literal

from subtune_jax import masks
from subtune_jax.methods import declaration, probing, selectors
from subtune_jax.methods import stage as stage_lib
from subtune_jax.methods.declaration import Declaration, Option


def full_fine_tuning(
  learning_rate: float, *, head_learning_rate: float | None = None, **stage: Any
) -> stage_lib.Method:
  """Every parameter. `stage` holds further fields of `Gradient` and `Stage` (epochs, ...)."""
  return (stage_lib.tune("all", selectors.backbone, learning_rate, head_learning_rate, stage),)


def lp_ft(
  learning_rate: float,
  *,
  head_learning_rate: float | None = None,
  l2: Sequence[float] = probing.DEFAULT_L2,
  standardize: stage_lib.Standardize = "scalar",
  max_steps: int | None = None,
  rescale: bool = False,
  norm_mode: Literal["batch", "running"] = "running",
  **stage: Any,
) -> stage_lib.Method:
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
  probe = probing.linear_probing(
    l2=l2, standardize=standardize, max_steps=max_steps, rescale=rescale
  )
  return probe + full_fine_tuning(
    learning_rate, head_learning_rate=head_learning_rate, norm_mode=norm_mode, **stage
  )


def frozen_embedding(
  learning_rate: float,
  *,
  blocks: Sequence[str] = ("stem",),
  head_learning_rate: float | None = None,
  **stage: Any,
) -> stage_lib.Method:
  """Everything but the first block ("How to fine-tune vision models with SGD", arXiv 2211.09359).

  Args:
    learning_rate: of everything else.
    blocks: what stays frozen: ("stem",) of a convolutional network, ("embedding",) of a ViT.
    head_learning_rate: of the head; `learning_rate` when None.
    **stage: further fields of `Gradient` and `Stage`.
  """
  if isinstance(blocks, str) or not blocks:
    raise ValueError(f"blocks is {blocks!r}; give a sequence of block names, e.g. ('stem',)")
  selector = selectors.Outside(tuple(blocks))
  return (
    stage_lib.tune(
      f"all but {'+'.join(blocks)}", selector, learning_rate, head_learning_rate, stage
    ),
  )


def layerwise_decay(
  learning_rate: float,
  *,
  blocks: Sequence[str],
  decay: float,
  head_learning_rate: float | None = None,
  **stage: Any,
) -> stage_lib.Method:
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
  return (stage_lib.gradient_stage("all", rules, rates, stage),)


DECLARATIONS = (
  Declaration(
    name="ft",
    title="Full fine-tuning",
    trains="everything",
    call="full_fine_tuning(1e-3, epochs=8)",
    build=lambda own, context: full_fine_tuning,
    gradient=declaration.gradient(),
  ),
  Declaration(
    name="lp_ft",
    title="LP-FT",
    source="[paper](https://arxiv.org/abs/2202.10054)",
    trains="head, then everything",
    call="lp_ft(1e-5, epochs=8)",
    build=lambda own, context: full_fine_tuning,
    gradient=declaration.gradient(learning_rates=(1e-4,), norm_mode="running"),
    grid=(1e-6, 1e-5, 1e-4, 1e-3),  # lower rates than full fine-tuning's, as in the paper
    probe_first=True,
  ),
  Declaration(
    name="layerwise_decay",
    title="Layer-wise rates",
    source="[BEiT](https://arxiv.org/abs/2106.08254)",
    trains="everything, early blocks slower",
    call="layerwise_decay(1e-3, blocks=model.block_names, decay=0.8, epochs=8)",
    build=lambda own, context: functools.partial(
      layerwise_decay, blocks=context.blocks, decay=own.decay
    ),
    options={"decay": Option(0.8, "a block's rate is decay^(distance from the head)")},
    gradient=declaration.gradient(),
  ),
  Declaration(
    name="frozen_embedding",
    title="Frozen embedding",
    source="[paper](https://arxiv.org/abs/2211.09359)",
    trains="all but the first block",
    call='frozen_embedding(1e-3, blocks=("stem",), epochs=8)',
    build=lambda own, context: functools.partial(frozen_embedding, blocks=tuple(own.blocks)),
    options={"blocks": Option(("stem",), 'stays frozen; ("embedding",) of a ViT')},
    gradient=declaration.gradient(),
  ),
)
