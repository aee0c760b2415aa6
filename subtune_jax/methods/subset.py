"""Methods that train a part of the network: SubTuning, gradual unfreezing, BatchNorm, biases."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

from subtune_jax.methods import declaration, probing, selectors
from subtune_jax.methods import stage as stage_lib
from subtune_jax.methods.declaration import Declaration, Option


def sub_tuning(
  blocks: Sequence[str],
  learning_rate: float,
  *,
  head_learning_rate: float | None = None,
  **stage: Any,
) -> stage_lib.Method:
  """SubTuning(S): the head and the named blocks (SubTuning, section 2).

  Surgical fine-tuning (arXiv 2210.11466) is this with one contiguous run of blocks. Where the head
  already knows the classes it is frozen there too: a `Stage` without a rule for the head. With the
  network of `models.beside.wrap` the head reads the frozen network's features as well.
  """
  if isinstance(blocks, str) or not blocks:
    raise ValueError(f"blocks is {blocks!r}; give a sequence of block names, e.g. ('block14',)")
  selector = tuple("/" + block for block in blocks)
  return (stage_lib.tune("+".join(blocks), selector, learning_rate, head_learning_rate, stage),)


def gradual_unfreezing(
  groups: Sequence[Sequence[str]],
  learning_rate: float,
  *,
  head_learning_rate: float | None = None,
  **stage: Any,
) -> stage_lib.Method:
  """Head, then head + the last group of blocks, then the one before too, ...

  Args:
    groups: disjoint groups of block names, input to output. The last stage trains all of them.
    learning_rate: of the blocks, in every stage.
    head_learning_rate: of the head; `learning_rate` when None.
    **stage: further fields of `Gradient` and `Stage`; `epochs` is per stage.
  """
  head_rate = learning_rate if head_learning_rate is None else head_learning_rate
  stages = [*probing.head_only(head_rate, **stage)]
  for first in range(len(groups) - 1, -1, -1):
    blocks = [block for group in groups[first:] for block in group]
    stages += sub_tuning(blocks, learning_rate, head_learning_rate=head_rate, **stage)
  return tuple(stages)


def batch_norm_only(
  learning_rate: float, *, head_learning_rate: float | None = None, **stage: Any
) -> stage_lib.Method:
  """The head and the scales and biases of BatchNorm (arXiv 2003.00152)."""
  return (
    stage_lib.tune("batch norm", selectors.batch_norm, learning_rate, head_learning_rate, stage),
  )


def bias_only(
  learning_rate: float, *, head_learning_rate: float | None = None, **stage: Any
) -> stage_lib.Method:
  """The head and every bias, those of normalisations included (BitFit, arXiv 2106.10199)."""
  return (stage_lib.tune("biases", selectors.biases, learning_rate, head_learning_rate, stage),)


def _sub_tuning(own: Any, context: declaration.Context) -> declaration.Builder:
  del context
  named = getattr(own, "beside_frozen", False)  # configs of older runs have no such field
  return functools.partial(_named if named else sub_tuning, tuple(own.blocks))


def _named(*args: Any, **stage: Any) -> stage_lib.Method:
  """SubTuning whose stage says that the head reads more."""
  return tuple(
    dataclasses.replace(own, name=f"{own.name} beside frozen") for own in sub_tuning(*args, **stage)
  )


def _beside_frozen(
  model: Any, variables: Any, key: Any, options: Mapping[str, Any]
) -> tuple[Any, Any]:
  from subtune_jax.models import beside  # linen modules: other methods need none

  del key
  return beside.wrap(model, variables, options["blocks"])


def _fresh_blocks(own: Any, context: declaration.Context) -> declaration.Builder:
  del context
  blocks = tuple(own.blocks)

  def build(learning_rate: float, **stage: Any) -> stage_lib.Method:
    return sub_tuning(blocks, learning_rate, **{**stage, "reinit": stage.get("reinit") or blocks})

  return build


def _fewer_channels(
  model: Any, variables: Any, key: Any, options: Mapping[str, Any]
) -> tuple[Any, Any]:
  from subtune_jax import pruning  # linen modules: other methods need none

  del key
  fields = {name: options[name] for name in ("share", "norm", "scope")}
  kept = pruning.choose(model, variables, options["blocks"], **fields)
  return pruning.shrink(model, variables, kept)


_LAST_BLOCKS = ("block13", "block14", "block15", "top")
_SMALL_LEAVES = (1e-4, 1e-3, 1e-2, 1e-1)

DECLARATIONS = (
  Declaration(
    name="subtuning",
    title="SubTuning",
    source="[paper](https://arxiv.org/abs/2302.06354)",
    trains="head and chosen blocks",
    call='sub_tuning(("block14", "top"), 1e-3, epochs=8)',
    build=_sub_tuning,
    options={
      "blocks": Option(_LAST_BLOCKS, "trained beside the head"),
      "probe_first": declaration.PROBE_FIRST,
      "beside_frozen": Option(False, "the head reads the frozen network's features as well"),
    },
    gradient=declaration.gradient(),
    prepare=_beside_frozen,
    prepare_if="beside_frozen",
  ),
  Declaration(
    name="fresh_blocks",
    title="SubTuning, fresh blocks",
    source="[paper](https://arxiv.org/abs/2302.06354)",
    trains="head and chosen blocks, these from fresh weights",
    call="sub_tuning(blocks, 1e-3, epochs=8, reinit=blocks)",
    build=_fresh_blocks,
    options={"blocks": Option(_LAST_BLOCKS, "trained beside the head; all fresh, or `reinit`")},
    gradient=declaration.gradient(),
  ),
  Declaration(
    name="pruned",
    title="SubTuning, pruned",
    source="[paper](https://arxiv.org/abs/2302.06354)",
    trains="head and chosen blocks, these of fewer channels",
    call="sub_tuning(blocks, 1e-3, epochs=8)",
    build=lambda own, context: functools.partial(sub_tuning, tuple(own.blocks)),
    options={
      "blocks": Option(_LAST_BLOCKS, "pruned, and trained beside the head"),
      "share": Option(0.5, "of their channels that goes"),
      "norm": Option("l2", '"l1" or "l2", of the weights that write a channel'),
      "scope": Option("local", '"local": the share of each layer; "global": of all together'),
    },
    gradient=declaration.gradient(),
    prepare=_fewer_channels,
  ),
  Declaration(
    name="gradual_unfreezing",
    title="Gradual unfreezing",
    source="[ULMFiT](https://arxiv.org/abs/1801.06146)",
    trains="head, head + last, ...",
    call="gradual_unfreezing(groups, 1e-3, epochs=4)",
    build=lambda own, context: functools.partial(
      gradual_unfreezing, [group.split() for group in own.groups]
    ),
    options={
      "groups": Option(
        ("block14 block15 top", "block11 block12 block13"), "the first is unfrozen last"
      )
    },
    gradient=declaration.gradient(epochs=4),
  ),
  Declaration(
    name="batch_norm_only",
    title="BatchNorm only",
    source="[paper](https://arxiv.org/abs/2003.00152)",
    trains="head and BatchNorm's scales and biases",
    call="batch_norm_only(1e-2, epochs=8)",
    build=lambda own, context: batch_norm_only,
    gradient=declaration.gradient(learning_rates=(1e-2,)),
    grid=_SMALL_LEAVES,
  ),
  Declaration(
    name="bias_only",
    title="Biases only",
    source="[BitFit](https://arxiv.org/abs/2106.10199)",
    trains="head and biases",
    call="bias_only(1e-2, epochs=8)",
    build=lambda own, context: bias_only,
    gradient=declaration.gradient(learning_rates=(1e-2,)),
    grid=_SMALL_LEAVES,
  ),
)
