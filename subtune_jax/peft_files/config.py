"""`adapter_config.json`: read with checks, and what it says of a module by its name."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
import pathlib
import re
from typing import Any

import numpy as np

from subtune_jax import nearest
from subtune_jax.peft_files import patterns
from subtune_jax.weights import errors, sidecar

FILE, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
BIASES = ("none", "all", "lora_only")
_MAX_RANK = 2**20
_MAX_SCALING = float(np.finfo(np.float32).max)
# Starts that leave the frozen weights as they are; the others change them when PEFT loads a folder.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
# Fields that change nothing of what a trained adapter computes.
_INERT = {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
          "inference_mode", "megatron_core", "qalora_group_size", "runtime_config", "eva_config",
          "lora_dropout", "loftq_config", "velora_config"}  # fmt: skip
_READ = {"peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "modules_to_save",
         "bias", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern",
         "use_dora", "use_rslora", "init_lora_weights"}  # fmt: skip
# Fields that change the function, which only their empty value is read of.
_REFUSED = {"fan_in_fan_out", "megatron_config", "trainable_token_indices", "corda_config",
            "lora_ga_config", "alora_invocation_tokens", "use_qalora", "monteclora_config",
            "layer_replication", "lora_bias", "target_parameters", "use_bdlora", "arrow_config",
            "kasa_config", "ensure_weight_tying"}  # fmt: skip

Chosen = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Config:
  """What a folder says of its adapter.

  Attributes:
    rank: where no pattern says another.
    alpha: likewise.
    dora: lengths are there.
    rslora: the scaling is alpha / sqrt(rank), not alpha / rank.
    bias: one of `BIASES`.
    target_modules: a regular expression, or names and ends of names.
    exclude_modules: likewise.
    modules_to_save: ends of names.
    rank_pattern: (regular expression of an end of a name, rank).
    alpha_pattern: likewise with alphas.
    layers: numbers of the layers that are adapted; None: all.
    layers_pattern: what stands before the number.
  """

  rank: int = 8
  alpha: float = 8.0
  dora: bool = False
  rslora: bool = False
  bias: str = "none"
  target_modules: Chosen = ()
  exclude_modules: Chosen = ()
  modules_to_save: tuple[str, ...] = ()
  rank_pattern: tuple[tuple[str, int], ...] = ()
  alpha_pattern: tuple[tuple[str, float], ...] = ()
  layers: tuple[int, ...] | None = None
  layers_pattern: tuple[str, ...] = ()

  def is_target(self, name: str) -> bool:
    """Whether a module gets an adapter (peft 0.21, `check_target_module_exists`).

    Raises:
      ValueError: a regular expression that is broken or cannot be evaluated.
    """
    if _is_chosen(self.exclude_modules, name, "exclude_modules"):
      return False
    if any(_is_inside(own, name) for own in self.modules_to_save):
      return False
    if not _is_chosen(self.target_modules, name, "target_modules"):
      return False
    if self.layers is None or isinstance(self.target_modules, str):
      return True
    return self._layer(name) in self.layers

  def choice(self) -> str:
    """What chooses the modules, for errors."""
    fields = {"target_modules": self.target_modules, "exclude_modules": self.exclude_modules,
              "layers_to_transform": self.layers, "layers_pattern": self.layers_pattern,
              "modules_to_save": self.modules_to_save}  # fmt: skip
    rows = (f"{name} is {errors.shown(value)}" for name, value in fields.items() if value)
    return ", ".join(rows)

  def _layer(self, name: str) -> int | None:
    parts = name.split(".")
    numbers = [i for i, own in enumerate(parts[:-1]) if own.isdecimal()]
    if not self.layers_pattern:
      return next((int(parts[i]) for i in numbers if i >= 2), None)
    for text in self.layers_pattern:
      fits = functools.partial(_asked, _pattern(text, "layers_pattern").fullmatch)
      for i in numbers:
        if any(fits(".".join(parts[s:i]), text, "layers_pattern") for s in range(i)):
          return int(parts[i])
    return None

  def is_saved(self, name: str) -> bool:
    """Whether a module is saved whole, itself or one around it (peft 0.21, `_set_trainable`)."""
    parts = name.split(".")
    around = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(own.endswith(end) for own in around for end in self.modules_to_save)

  def rank_of(self, name: str) -> int:
    """The rank at a module."""
    return _by_pattern(self.rank_pattern, name, self.rank, "rank_pattern")

  def alpha_of(self, name: str) -> float:
    """The alpha at a module."""
    return _by_pattern(self.alpha_pattern, name, self.alpha, "alpha_pattern")

  def scaling_of(self, name: str) -> float:
    """What the product is multiplied by at a module."""
    alpha, rank = self.alpha_of(name), self.rank_of(name)
    return alpha / math.sqrt(rank) if self.rslora else alpha / rank


@functools.lru_cache(maxsize=1024)
def _pattern(text: str, field: str, around: str = "TEXT") -> patterns.Pattern:
  """An expression of a field, inside another one, after it has been seen to stand alone."""
  try:
    alone = patterns.Pattern(text)
    return alone if around == "TEXT" else patterns.Pattern(around.replace("TEXT", text))
  except patterns.PatternError as e:
    raise ValueError(_of_pattern(field, text, e)) from e


def _of_pattern(field: str, text: str, error: Exception) -> str:
  return (
    f"{field} has {errors.quote(text)}: {errors.quote(str(error))[1:-1]}; give names of modules, "
    "or a regular expression without flags, references and looking back"
  )


def _asked(ask: Callable[[str], bool], name: str, text: str, field: str) -> bool:
  try:
    return ask(name)
  except patterns.PatternError as e:
    raise ValueError(_of_pattern(field, text, e)) from e


def _is_chosen(chosen: Chosen, name: str, field: str) -> bool:
  if isinstance(chosen, str):
    return bool(chosen) and _asked(_pattern(chosen, field).fullmatch, name, chosen, field)
  return any(name == own or name.endswith(f".{own}") for own in chosen)


def _is_inside(text: str, name: str) -> bool:
  """Whether a run of a name's parts matches."""
  if _PLAIN.fullmatch(text):
    return f".{_unescaped(text)}." in f".{name}."
  pattern = _pattern(text, "modules_to_save", r"(^|.*\.)TEXT($|\..*)")
  return _asked(pattern.match, name, text, "modules_to_save")


def _by_pattern(rows: Sequence[tuple[str, Any]], name: str, default: Any, field: str) -> Any:
  """The value of the first expression that is the name or an end of it after a dot."""
  for text, value in rows:
    if _PLAIN.fullmatch(text.removeprefix("^")):
      plain = _unescaped(text).removeprefix("^")
      found = name == plain or (text[0] != "^" and name.endswith(f".{plain}"))
    else:
      found = _asked(_pattern(text, field, r"(.*\.)?(TEXT)$").fullmatch, name, text, field)
    if found:
      return value
  return default


_PLAIN = re.compile(r"(?:\w|\\\.)+")  # a name with its dots escaped


def _unescaped(text: str) -> str:
  return text.replace("\\.", ".")


# ------------------------------------------------------------------ reading


def read(folder: pathlib.Path) -> Config:
  """Reads the folder's file.

  Raises:
    WeightsError: there is none, it is not JSON, or a field is missing, unknown or refused.
  """
  file = folder / FILE
  try:
    said = sidecar.read_json(file)
  except errors.WeightsError as e:
    raise errors.WeightsError(" ".join(str(e).replace("beside the weights ", "").split())) from e
  if said is None:
    raise errors.WeightsError(
      f"{folder} has no {FILE}; give a folder that PEFT's save_pretrained or "
      "peft_files.write wrote (a second adapter lies in a folder of its name)"
    )
  try:
    return parse(said)
  except ValueError as e:
    raise errors.WeightsError(f"{file}: {e}") from e


def parse(said: Mapping[str, Any]) -> Config:
  """The config in the object of the file.

  Raises:
    ValueError: a field is missing, unknown, refused, or has a value that is not allowed.
  """
  if said.get("peft_type") != "LORA":
    raise ValueError(
      f"peft_type is {errors.shown(said.get('peft_type'))}; allowed: 'LORA' (LoRA, rsLoRA, DoRA). "
      "Merge other adapters in PEFT (merge_and_unload) and load the weights"
    )
  _check_fields(said)
  start = said.get("init_lora_weights")
  if not any(start is own or (isinstance(own, str) and start == own) for own in _STARTS):
    raise ValueError(
      f"init_lora_weights is {errors.shown(start)}; allowed: {', '.join(map(repr, _STARTS))}. The "
      "others change the frozen weights: save with path_initial_model_for_weight_conversion"
    )
  bias = said.get("bias", "none")
  if bias not in BIASES:
    raise ValueError(f"bias is {errors.shown(bias)}; allowed: {', '.join(map(repr, BIASES))}")
  targets = _chosen(said, "target_modules")
  if not targets or targets == "all-linear":
    raise ValueError(
      f"target_modules is {errors.shown(said.get('target_modules'))}; give names of modules, or a "
      "regular expression; a saved folder names them"
    )
  layers = _layers(said)
  if layers is not None and isinstance(targets, str):
    raise ValueError("layers_to_transform goes with names in target_modules, not with a regular "
                     "expression; give a list of names")  # fmt: skip
  saved = _chosen(said, "modules_to_save")
  if isinstance(saved, str):
    raise ValueError(f"modules_to_save is {errors.shown(saved)}; give a list of names")
  made = Config(
    _rank(said.get("r", 8), "r"), _alpha(said.get("lora_alpha", 8), "lora_alpha"),
    _flag(said, "use_dora"), _flag(said, "use_rslora"), bias, targets,
    _chosen(said, "exclude_modules"), saved,
    _rows(said, "rank_pattern", _rank), _rows(said, "alpha_pattern", _alpha),
    layers, _as_names(_chosen(said, "layers_pattern")),
  )  # fmt: skip
  _check_patterns(made)
  return made


def _check_fields(said: Mapping[str, Any]) -> None:
  for name, value in said.items():
    empty = value is None or value is False or value in ({}, [])
    if name in _READ or name in _INERT or empty:
      continue
    if name in _REFUSED:
      raise ValueError(
        f"{name} is {errors.shown(value)}; it changes what the adapter computes and is not read "
        "here. Train without it, or merge the adapter in PEFT (merge_and_unload)"
      )
    near = nearest.names(name, _READ | _INERT | _REFUSED)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
      f"{errors.quote(name)} is a field that is not known.{hint} Allowed: "
      f"{', '.join(sorted(_READ))}. Take it out if it changes nothing"
    )


def _check_patterns(config: Config) -> None:
  for field in ("target_modules", "exclude_modules"):
    text = getattr(config, field)
    if isinstance(text, str) and text:
      _pattern(text, field)
  for field in ("modules_to_save", "layers_pattern"):
    for text in getattr(config, field):
      _pattern(text, field)
  for field in ("rank_pattern", "alpha_pattern"):
    for text, _ in getattr(config, field):
      _pattern(text, field)


def _rank(value: Any, field: str) -> int:
  if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_RANK:
    raise ValueError(
      f"{field} is {errors.shown(value)}; allowed: an integer from 1 to {_MAX_RANK}, the rows of "
      "the lora_A that it was saved with"
    )
  return value


def _alpha(value: Any, field: str) -> float:
  fits = isinstance(value, int | float) and not isinstance(value, bool)
  if not fits or not abs(value) <= _MAX_SCALING:  # NaN too
    raise ValueError(f"{field} is {errors.shown(value)}; allowed: a finite number of float32")
  return float(value)


def _flag(said: Mapping[str, Any], field: str) -> bool:
  value = said.get(field)
  if value is not None and not isinstance(value, bool):
    raise ValueError(f"{field} is {errors.shown(value)}; allowed: true, false")
  return bool(value)


def _chosen(said: Mapping[str, Any], field: str) -> Chosen:
  value = said.get(field)
  if value is None:
    return ()
  if isinstance(value, str):
    return value
  if not isinstance(value, list) or not all(isinstance(own, str) and own for own in value):
    raise ValueError(f"{field} is {errors.shown(value)}; give a list of names of modules")
  return tuple(value)


def _as_names(chosen: Chosen) -> tuple[str, ...]:
  return (chosen,) if isinstance(chosen, str) else chosen


def _layers(said: Mapping[str, Any]) -> tuple[int, ...] | None:
  value = said.get("layers_to_transform")
  if value is None or value == []:
    if said.get("layers_pattern"):
      raise ValueError("layers_pattern goes with layers_to_transform, which is missing; give both")
    return None
  found = value if isinstance(value, list) else [value]
  if not all(isinstance(own, int) and not isinstance(own, bool) for own in found):
    raise ValueError(f"layers_to_transform is {errors.shown(value)}; give integers")
  return tuple(found)


def _rows(said: Mapping[str, Any], field: str, check: Any) -> tuple[tuple[str, Any], ...]:
  value = said.get(field)
  if value is None:
    return ()
  if not isinstance(value, dict):
    raise ValueError(
      f"{field} is {errors.shown(value)}; give an object of names or expressions and numbers"
    )
  return tuple((key, check(own, f"{field}[{errors.quote(key)}]")) for key, own in value.items())
