"""What transformers' `config.json` says of each type of network, in its fields' names.

Defaults are those of the `__init__` of transformers' configuration classes (version 5.24.0,
`models/*/configuration_*.py`: ViTConfig, Dinov2Config, ResNetConfig, ...).
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from flax import linen as nn

from subtune_jax.models import convnext, resnet, vit

ANY = object()  # a field whose value does not change this model's function

# transformers' activations (activations.ACT2FN) that are one of ours.
ACTIVATIONS = {
  **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
  **dict.fromkeys(
    ("gelu_pytorch_tanh", "gelu_python_tanh", "gelu_new", "gelu_fast", "gelu_accurate"), "gelu_tanh"
  ),
  "quick_gelu": "quick_gelu",
  "relu": "relu",
}

# Fields that do not change inference: training, bookkeeping, what a call returns, text generation,
# the pooler and the mask token, neither of which is read; and what is compared on its own.
INERT = frozenset((
  "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path",
  "add_cross_attention", "apply_layernorm", "architectures", "attention_dropout",
  "attention_probs_dropout_prob", "bad_words_ids", "begin_suppress_tokens", "bos_token_id",
  "chunk_size_feed_forward", "cross_attention_hidden_size", "decoder_start_token_id",
  "diversity_penalty", "do_sample", "drop_path_rate", "dropout", "dtype", "early_stopping",
  "encoder_no_repeat_ngram_size", "encoder_stride", "eos_token_id",
  "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
  "forced_eos_token_id", "hidden_dropout_prob", "id2label", "initializer_factor",
  "initializer_range", "is_decoder", "is_encoder_decoder", "label2id", "layerscale_value",
  "length_penalty", "max_length", "min_length", "model_type", "no_repeat_ngram_size",
  "num_beam_groups", "num_beams", "num_labels", "num_return_sequences", "out_features",
  "out_indices", "output_attentions", "output_hidden_states", "output_scores", "pad_token_id",
  "pooler_act", "pooler_output_size", "prefix", "problem_type",
  "projection_dim", "quantization_config",
  "remove_invalid_values", "repetition_penalty", "reshape_hidden_states", "return_dict",
  "return_dict_in_generate", "sep_token_id", "stage_names", "suppress_tokens",
  "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
  "tie_word_embeddings", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
  "transformers_version", "typical_p", "use_bfloat16", "use_cache", "use_mask_token",
))  # fmt: skip
# Of a file of two towers, outside of "vision_config".
INERT_OUTSIDE = frozenset((
  "logit_scale_init_value", "text_config", "text_config_dict",
  "vision_config", "vision_config_dict",
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class HubType:
  """One `model_type` of transformers.

  Attributes:
    family: of our model.
    fields: our model -> its values of the fields that the function depends on.
    defaults: of these fields, and of "image_size".
    architectures: classes whose files are read here.
    structure: options of our model that the type's class has built in.
    head_pool: what the classifier reads, as a ViT's `pool`; None where no model of ours has it.
    projection_pool: the same, of the projection.
    nested: the fields are in "vision_config".
    ignored: fields that do not change this type's function.
  """

  family: type[nn.Module]
  fields: Callable[[Any], dict[str, Any]]
  defaults: Mapping[str, Any]
  architectures: frozenset[str]
  structure: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  head_pool: str | None = None
  projection_pool: str | None = None
  nested: bool = False
  ignored: frozenset[str] = frozenset()


def _vit(model: vit.ViT) -> dict[str, Any]:
  mlp_width = 4 * model.width if model.mlp_width is None else model.mlp_width
  return {
    "hidden_size": model.width,
    "num_hidden_layers": model.depth,
    "num_attention_heads": model.heads,
    "head_dim": model.width // model.heads,
    "intermediate_size": mlp_width,
    "hidden_act": model.activation,
    "layer_norm_eps": float(model.norm_epsilon),
    "patch_size": model.patch_size,
    "num_channels": 3,
    "qkv_bias": model.qkv_bias,
  }


def _clip(model: vit.ViT) -> dict[str, Any]:
  fields = _vit(model)
  return {name: fields[name] for name in fields if name not in ("qkv_bias", "head_dim")}


def _siglip(model: vit.ViT) -> dict[str, Any]:
  return {**_clip(model), "vision_use_head": True if model.pool == "map" else ANY}


def _dinov2(model: vit.ViT) -> dict[str, Any]:
  fields = _vit(model)
  hidden = fields.pop("intermediate_size")
  return {**fields, "mlp_ratio": hidden / model.width, "use_swiglu_ffn": False}


def _registers(model: vit.ViT) -> dict[str, Any]:
  return {**_dinov2(model), "num_register_tokens": model.registers}


def _resnet(model: resnet.ResNet) -> dict[str, Any]:
  expansion = resnet.EXPANSION if model.bottleneck else 1
  stages = range(len(model.stage_sizes))
  return {
    "num_channels": 3,
    "embedding_size": model.width,
    "hidden_sizes": [model.width * expansion * 2**stage for stage in stages],
    "depths": list(model.stage_sizes),
    "layer_type": "bottleneck" if model.bottleneck else "basic",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False if model.bottleneck else ANY,
  }


def _convnext(model: convnext.ConvNeXt) -> dict[str, Any]:
  return {
    "num_channels": 3,
    "patch_size": 4,
    "num_stages": len(model.depths),
    "hidden_sizes": list(model.widths),
    "depths": list(model.depths),
    "hidden_act": "gelu",
    "layer_norm_eps": float(model.top_epsilon),  # of the last LayerNorm alone
    "layer_scale_init_value": True,  # there is a layer scale
  }


_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_channels": 3,
          "image_size": 224}  # fmt: skip
_VIT = {**_SIZES, "intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "patch_size": 16, "qkv_bias": True}  # fmt: skip
_CLIP = {**_SIZES, "intermediate_size": 3072, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
         "patch_size": 32}  # fmt: skip
_SIGLIP = {**_CLIP, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "patch_size": 16,
           "vision_use_head": True}  # fmt: skip
_DINOV2 = {**_SIZES, "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "patch_size": 14,
           "qkv_bias": True, "use_swiglu_ffn": False}  # fmt: skip
_RESNET = {"num_channels": 3, "embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048],
           "depths": [3, 4, 6, 3], "layer_type": "bottleneck", "hidden_act": "relu",
           "downsample_in_first_stage": False, "downsample_in_bottleneck": False}  # fmt: skip
_CONVNEXT = {"num_channels": 3, "patch_size": 4, "num_stages": 4,
             "hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3], "hidden_act": "gelu",
             "layer_norm_eps": 1e-12, "layer_scale_init_value": 1e-6}  # fmt: skip

_BARE = {"class_token": True, "registers": 0, "pre_norm": False, "patch_bias": True,
         "layer_scale": False, "projection": None}  # fmt: skip
_BARE_CLIP = {"class_token": True, "registers": 0, "pre_norm": True, "patch_bias": False,
              "layer_scale": False}  # fmt: skip
_BARE_SIGLIP = {"class_token": False, "registers": 0, "pre_norm": False, "patch_bias": True,
                "layer_scale": False, "projection": None}  # fmt: skip


def _classes(prefix: str, *endings: str) -> frozenset[str]:
  endings = ("Model", "ForImageClassification", "Backbone", *endings)
  return frozenset(prefix + ending for ending in endings)


def _tower(prefix: str, *endings: str) -> frozenset[str]:
  return frozenset((f"{prefix}VisionModel", *(prefix + ending for ending in endings)))


_OF_CLIP = _tower("CLIP", "VisionModelWithProjection", "Model", "ForImageClassification")
_OF_SIGLIP = _tower("Siglip", "Model", "ForImageClassification")

TYPES: dict[str, HubType] = {
  "vit": HubType(vit.ViT, _vit, _VIT, _classes("ViT", "ForMaskedImageModeling"), _BARE, "token"),
  "vit_msn": HubType(
    vit.ViT, _vit, {**_VIT, "layer_norm_eps": 1e-6}, _classes("ViTMSN"), _BARE, "token"
  ),
  "dinov2": HubType(
    vit.ViT, _dinov2, _DINOV2, _classes("Dinov2"), {**_BARE, "layer_scale": True}, "token_mean"
  ),
  "dinov2_with_registers": HubType(
    vit.ViT,
    _registers,
    {**_DINOV2, "patch_size": 16, "num_register_tokens": 4},
    _classes("Dinov2WithRegisters"),
    {**_BARE, "layer_scale": True, "registers": ANY},
    "token_mean",
  ),
  "resnet": HubType(resnet.ResNet, _resnet, _RESNET, _classes("ResNet"), {"stem": "imagenet"}),
  "convnext": HubType(
    convnext.ConvNeXt,
    _convnext,
    _CONVNEXT,
    _classes("ConvNext"),
    ignored=frozenset({"image_size"}),
  ),
  "clip": HubType(
    vit.ViT, _clip, _CLIP, _OF_CLIP, _BARE_CLIP, projection_pool="token", nested=True
  ),
  "clip_vision_model": HubType(
    vit.ViT, _clip, _CLIP, _OF_CLIP, _BARE_CLIP, projection_pool="token"
  ),
  "siglip": HubType(vit.ViT, _siglip, _SIGLIP, _OF_SIGLIP, _BARE_SIGLIP, "mean", nested=True),
  "siglip_vision_model": HubType(vit.ViT, _siglip, _SIGLIP, _OF_SIGLIP, _BARE_SIGLIP, "mean"),
}


def guess(model: nn.Module) -> str | None:
  """Returns the type of a file that does not name it: the one whose structure the model has."""
  for name, hub_type in TYPES.items():
    structure = hub_type.structure.items()
    if isinstance(model, hub_type.family) and all(
      theirs is ANY or getattr(model, option) == theirs for option, theirs in structure
    ):
      return name
  return None
