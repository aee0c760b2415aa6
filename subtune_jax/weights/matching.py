"""Which naming scheme a file follows, and its tensors as a model's variables."""

from collections.abc import Iterable, Mapping
from concurrent import futures
import dataclasses
from typing import Any

from absl import logging
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax.weights import errors, naming
from subtune_jax.weights.naming import base

_WRAPPERS = ("", "module.", "backbone.", "module.backbone.")
_ALIGNMENT = 64  # bytes, of the CPU backend's buffers
_MAX_ROWS = 40  # of an error; a foreign file would print hundreds


@dataclasses.dataclass(frozen=True)
class Match:
  """A scheme, read for one model with one prefix.

  Attributes:
    scheme: the naming scheme.
    prefix: what the names of the backbone's tensors begin with.
    sources: path of a variable -> the tensors that make it.
    dropped: groups of tensors that may stay unread.
  """

  scheme: base.Scheme
  prefix: str
  sources: Mapping[str, base.Source]
  dropped: tuple[base.Dropped, ...]

  @property
  def wanted(self) -> frozenset[str]:
    """Names of all tensors that variables are made of."""
    return frozenset(key for source in self.sources.values() for key in source.keys)


def paths(shapes: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the '/'-paths of a model's variables, from the root."""
  return tuple(traverse_util.flatten_dict(shapes, sep="/"))


def _read(scheme: base.Scheme, prefix: str, model: nn.Module, paths: Iterable[str]) -> Match | None:
  """The scheme for this model; None where it has no name for one of the model's variables."""
  sources = {path: scheme.source(model, path, prefix) for path in paths}
  if any(source is None for path, source in sources.items() if path not in base.HEAD):
    return None
  match = Match(scheme, prefix, {p: s for p, s in sources.items() if s is not None}, ())
  dropped = tuple(scheme.dropped(model, prefix, match.wanted))
  return dataclasses.replace(match, dropped=dropped)


def recognise(tensors: Iterable[str], model: nn.Module, paths: Iterable[str], where: str) -> Match:
  """Returns the scheme and prefix that claim most of the tensors.

  Args:
    tensors: names in the file.
    model: the backbone.
    paths: of its variables, from the root.
    where: the file, for the error.

  Raises:
    WeightsError: no scheme of the model's family claims any tensor.
  """
  names, paths = frozenset(tensors), tuple(paths)
  sample = paths[:: max(1, len(paths) // 16)]
  schemes = naming.schemes(type(model))
  best, most = None, 0
  for scheme in schemes:
    for inner in scheme.prefixes:
      for prefix in dict.fromkeys((inner, *(outer + inner for outer in _WRAPPERS))):
        probe = _read(scheme, prefix, model, sample)
        match = probe and probe.wanted & names and _read(scheme, prefix, model, paths)
        if not match:
          continue
        known = match.wanted.union(*(group.keys for group in match.dropped))
        claimed = len(match.wanted & names) + len(known & names)
        if claimed > most:
          best, most = match, claimed
  if best is None:
    raise errors.WeightsError(
      f"{where} holds none of the tensors of this {type(model).__name__}; it holds "
      f"{_some(sorted(names))}. Naming schemes known for it: {'; '.join(s.title for s in schemes)}"
    )
  return best


def _some(names: list[str], most: int = 6) -> str:
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(map(repr, names[:most])) + more if names else "no tensor at all"


def convert(
  tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any], match: Match, where: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Makes the variables from the tensors.

  Args:
    tensors: of the file.
    shapes: the model's variables as shapes.
    match: the scheme that the file follows.
    where: the file, for errors.

  Returns:
    The variables in float32 without the paths that follow; and the '/'-paths of the head's leaves
    when the file has no head or one of another number of classes.

  Raises:
    WeightsError: tensors that are missing, unexpected, misshapen or not finite, all listed.
  """
  targets = traverse_util.flatten_dict(shapes, sep="/")
  if not any(path in tensors for path in _head_keys(match)):
    match = dataclasses.replace(
      match, sources={p: s for p, s in match.sources.items() if p not in base.HEAD}
    )
  rows = _unmatched(frozenset(tensors), match)
  loaded, wrong = {}, {}
  for path, source in match.sources.items():
    if all(key in tensors for key in source.keys):
      array = source.convert(*(tensors[key] for key in source.keys))
      if array.shape != targets[path].shape:
        wrong[path] = array.shape
      else:
        loaded[path] = array
  skipped = set(base.HEAD) - set(match.sources)
  if _other_classes(tensors, match, targets):
    skipped |= set(base.HEAD)
  rows += [
    f"{path} is {targets[path].shape}, {' + '.join(match.sources[path].keys)} in the file is "
    f"{shape} in the same order"
    for path, shape in wrong.items()
    if path not in skipped
  ]
  rows += _whole_numbers(tensors, match)
  rows = rows or _not_finite(loaded, match)
  if rows:
    raise errors.WeightsError(_message(where, match, rows))
  _log(frozenset(tensors), match, where, skipped)
  variables = _on_device({path: a for path, a in loaded.items() if path not in skipped})
  return traverse_util.unflatten_dict(variables, sep="/"), tuple(
    path.removeprefix("params/") for path in base.HEAD if path in skipped
  )


def _on_device(arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
  """The arrays in float32; nothing of the file stays behind them.

  They are copied once, by several threads, to where the CPU backend can use them as they are.
  """
  with futures.ThreadPoolExecutor() as pool:
    copies = list(pool.map(_copy, arrays.values()))
  return dict(zip(arrays, jax.device_put(copies, may_alias=True), strict=True))


def _copy(array: np.ndarray) -> np.ndarray:
  """A contiguous float32 copy that starts at a multiple of 64 bytes."""
  buffer = np.empty(4 * array.size + _ALIGNMENT, np.uint8)
  start = -buffer.ctypes.data % _ALIGNMENT
  copy = buffer[start : start + 4 * array.size].view(np.float32).reshape(array.shape)
  np.copyto(copy, array, casting="unsafe")
  return copy


def _head_keys(match: Match) -> set[str]:
  return {key for path in base.HEAD if path in match.sources for key in match.sources[path].keys}


def _unmatched(names: frozenset[str], match: Match) -> list[str]:
  """A row for every tensor that is missing from the file or has no use."""
  wanted = match.wanted
  rows = [f"missing from the file: {key}" for key in sorted(wanted - names)]
  spare = names - wanted
  for group in match.dropped:
    found = spare & group.keys
    if found and found != group.keys - wanted:
      rows += [f"missing from the file: {k} ({group.what})" for k in sorted(group.keys - names)]
    spare -= found
  return rows + [f"unexpected in the file: {key}" for key in sorted(spare)]


def _whole_numbers(tensors: Mapping[str, np.ndarray], match: Match) -> list[str]:
  """A row for every wanted tensor of a type without fractions: quantised, its scale unknown."""
  return [
    f"{key} is {tensors[key].dtype} in the file: quantised values need their scale; save floats"
    for key in sorted(match.wanted & frozenset(tensors))
    if not jnp.issubdtype(tensors[key].dtype, jnp.floating)
  ]


def _not_finite(arrays: Mapping[str, np.ndarray], match: Match) -> list[str]:
  """A row for every array that holds NaN or an infinity."""

  def finite(array):
    return array.dtype.kind in "iub" or bool(np.isfinite(array).all())

  with futures.ThreadPoolExecutor() as pool:
    good = pool.map(finite, arrays.values())
  return [
    f"{' + '.join(match.sources[path].keys)} in the file has values that are not finite"
    for path, is_finite in zip(arrays, good, strict=True)
    if not is_finite
  ]


def _other_classes(
  tensors: Mapping[str, np.ndarray], match: Match, targets: Mapping[str, Any]
) -> bool:
  """Tells whether the file's head is a whole one that only counts other classes."""
  heads = [head for path in base.HEAD if (head := match.sources.get(path))]
  if len(heads) < len(base.HEAD) or any(key not in tensors for h in heads for key in h.keys):
    return False
  kernel, bias = (head.convert(*(tensors[key] for key in head.keys)) for head in heads)
  if kernel.ndim != 2 or bias.ndim != 1:
    return False
  features, num_classes = targets[base.HEAD[0]].shape
  return kernel.shape == (features, bias.size) and bias.size != num_classes


def _message(where: str, match: Match, rows: list[str]) -> str:
  shown = rows[:_MAX_ROWS]
  if len(rows) > len(shown):
    shown.append(f"... and {len(rows) - len(shown)} more")
  prefix = f" under {match.prefix!r}" if match.prefix else ""
  title = f"{where}, read as {match.scheme.title}{prefix}, does not fit the model:"
  return "\n  ".join([title, *shown])


def _log(names: frozenset[str], match: Match, where: str, skipped: set[str]) -> None:
  groups = {group.what: len(names & group.keys) for group in match.dropped}
  dropped = ", ".join(f"{count} of {what}" for what, count in groups.items() if count)
  logging.info(
    "%s: %s%s, %d tensors read, dropped: %s; initialised: %s",
    where,
    match.scheme.title,
    f" under {match.prefix!r}" if match.prefix else "",
    len(match.wanted & names),
    dropped or "nothing",
    "the head" if skipped else "nothing",
  )
