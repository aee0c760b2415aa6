"""Methods that train adapters and the head beside a frozen backbone (`subtune_jax.adapters`)."""

from collections.abc import Mapping
from typing import Any

from subtune_jax import adapters
from subtune_jax.methods import declaration, selectors
from subtune_jax.methods import stage as stage_lib
from subtune_jax.methods.declaration import Declaration, Option

_TRANSFORMER = "encoderblock_0"


def adapter_tuning(
  learning_rate: float, *, head_learning_rate: float | None = None, **stage: Any
) -> stage_lib.Method:
  """The head and the leaves of the adapters that the network has (`models.adapted.add`)."""
  return (stage_lib.tune("adapters", selectors.adapters, learning_rate, head_learning_rate, stage),)


def _where(options: Mapping[str, Any], model: Any, vit: Any, conv: Any) -> tuple[str, ...]:
  """The selectors of an option `where`, or those for the network's family."""
  if options["where"]:
    return tuple(options["where"])
  if _TRANSFORMER in model.block_names:
    return vit
  if conv == "blocks":
    return tuple(f"/{block}" for block in model.block_names if block not in ("stem", "top"))
  if conv is None:
    raise ValueError("vpt needs a transformer, whose blocks read tokens; use another method")
  return conv


def _ranks(text: str) -> tuple[tuple[str, int], ...]:
  """`rank_pattern` from "block14=4,block15=16"."""
  pairs = []
  for part in filter(None, text.split(",")):
    name, _, rank = part.partition("=")
    if not rank.strip().isdigit():
      raise ValueError(f"rank_pattern is {text!r}; give ranks by module, such as 'block14=4'")
    pairs.append((name.strip(), int(rank)))
  return tuple(pairs)


def _lora_rule(kind: Any, options: Mapping[str, Any], model: Any) -> adapters.Rule:
  return kind(
    _where(options, model, ("*",), ("*",)), exclude="/head", rank=options["rank"],
    alpha=options["alpha"], rslora=options["rslora"],
    rank_pattern=_ranks(options["rank_pattern"]),
  )  # fmt: skip


def _lora(options: Mapping[str, Any], model: Any) -> adapters.Rule:
  return _lora_rule(adapters.LoRA, options, model)


def _dora(options: Mapping[str, Any], model: Any) -> adapters.Rule:
  return _lora_rule(adapters.DoRA, options, model)


def _ssf(options: Mapping[str, Any], model: Any) -> adapters.Rule:
  return adapters.SSF(_where(options, model, ("*",), ("*",)), exclude="/head")


def _adaptformer(options: Mapping[str, Any], model: Any) -> adapters.Rule:
  where = _where(options, model, ("mlp",), "blocks")
  return adapters.AdaptFormer(where, rank=options["rank"], scale=options["scale"])


def _houlsby(options: Mapping[str, Any], model: Any) -> adapters.Rule:
  return adapters.Houlsby(
    _where(options, model, ("attention", "mlp"), "blocks"), rank=options["rank"]
  )


def _convpass(options: Mapping[str, Any], model: Any) -> adapters.Rule:
  where = _where(options, model, ("attention", "mlp"), "blocks")
  return adapters.Convpass(where, rank=options["rank"], scale=options["scale"])


def _repadapter(options: Mapping[str, Any], model: Any) -> adapters.Rule:
  where = _where(options, model, ("attention/qkv", "mlp/in"), ("*",))
  return adapters.RepAdapter(
    where, exclude="/head", rank=options["rank"], scale=options["scale"], groups=options["groups"]
  )


def _vpt(options: Mapping[str, Any], model: Any) -> adapters.Rule:
  return adapters.VPT(
    _where(options, model, ("/encoderblock_*",), None), prompts=options["prompts"],
    deep=options["deep"], patch_size=getattr(model, "patch_size", 16),
  )  # fmt: skip


def _prepared(rule: Any) -> declaration.Prepare:
  def prepare(model: Any, variables: Any, key: Any, options: Any) -> tuple[Any, Any]:
    from subtune_jax.models import adapted  # linen modules: not needed by other methods

    return adapted.add(model, variables, rule(options, model), key)

  return prepare


_WHERE = Option(
  (), "selectors of modules; () is what the method's paper adapts, see docs/adapters.md"
)
_SCALE = "of what the adapter adds"
_LORA = {
  "rank": Option(8, "of the products"),
  "alpha": Option(8.0, "products are scaled by alpha / rank"),
  "rslora": Option(False, "by alpha / sqrt(rank) instead"),
  "rank_pattern": Option("", 'other ranks of some modules, such as "block14=4,block15=16"'),
}


def _declare(
  name: str, title: str, paper: str, trains: str, rule: Any, options: Any
) -> Declaration:
  return Declaration(
    name=name,
    title=title,
    source=f"[paper](https://arxiv.org/abs/{paper})",
    trains=trains,
    call="adapter_tuning(1e-3, epochs=8)",
    build=lambda own, context: adapter_tuning,
    options={"where": _WHERE, "probe_first": declaration.PROBE_FIRST, **options},
    gradient=declaration.gradient(norm_mode="running"),
    prepare=_prepared(rule),
  )


DECLARATIONS = (
  _declare("lora", "LoRA", "2106.09685", "head and low-rank products beside kernels", _lora, _LORA),
  _declare("dora", "DoRA", "2402.09353", "head, low-rank products and kernels' lengths", _dora,
           _LORA),
  _declare("ssf", "SSF", "2210.08823", "head, a scale and shift behind every layer", _ssf, {}),
  _declare("adaptformer", "AdaptFormer", "2205.13535", "head and bottlenecks beside MLPs",
           _adaptformer, {"rank": Option(64, "channels of a bottleneck"),
                          "scale": Option(0.1, _SCALE)}),
  _declare("houlsby", "Houlsby adapters", "1902.00751", "head and bottlenecks behind layers",
           _houlsby, {"rank": Option(64, "channels of a bottleneck")}),
  _declare("convpass", "Convpass", "2207.07039", "head and convolutional bottlenecks", _convpass,
           {"rank": Option(8, "channels of a bottleneck"), "scale": Option(1.0, _SCALE)}),
  _declare("repadapter", "RepAdapter", "2302.08106", "head and linear maps before layers",
           _repadapter, {"rank": Option(8, "channels in between"), "scale": Option(1.0, _SCALE),
                         "groups": Option(2, "of the second matrix; divides the rank")}),
  _declare("vpt", "VPT", "2203.12119", "head and prompts among the tokens", _vpt,
           {"prompts": Option(10, "tokens that are added"),
            "deep": Option(True, "to every block; False: to the first")}),
)  # fmt: skip
