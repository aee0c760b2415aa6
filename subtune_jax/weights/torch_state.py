"""The state dict inside what a torch file holds: itself, a checkpoint's part, or a module's."""

from collections.abc import Mapping
from typing import Any

from absl import logging

from subtune_jax.weights import errors, nested_names, pickle_machine, torch_tensors

_KEYS = ("state_dict", "model", "model_state_dict", "teacher", "student", "ema")
_DINO = ("teacher", "student")
_LEVELS = 2
_SHOWN = 20


def tensors(value: Any, name: str, file_size: int) -> dict[str, torch_tensors.Tensor]:
  """Returns the tensors of a state dict by dotted name; says in the log what was dropped.

  Args:
    value: a state dict; or a training checkpoint, which has one under exactly one of the names
      state_dict, model, model_state_dict, teacher, student and ema (of DINO's teacher and
      student, the teacher), possibly twice; or the root module of a TorchScript archive.
    name: the file's name, for the log.
    file_size: bytes of the file.

  Raises:
    Refused: there is no state dict, or it is not clear which of several is meant.
  """
  path: list[str] = []
  while isinstance(value, dict) and len(path) < _LEVELS:
    key = None if path and _direct(value) else _container(value)
    if key is None:
      break
    path.append(key)
    dropped = [str(k) for k in value if k != key]
    logging.info("%s: %s is taken; dropped beside it: %s", name, ".".join(path), _few(dropped))
    value = value[key]
  kind = type(value)
  if kind not in (dict, pickle_machine.Object):
    raise errors.Refused(f"it holds a {kind.__name__}, not a dict of tensors")
  if kind is dict and not path and not _direct(value):
    raise errors.Refused(f"it is no state dict and none of {', '.join(_KEYS)} in it is one; it "
                         f"has {_few([str(k) for k in value])}")  # fmt: skip
  leaves = nested_names.flatten(
    value, lambda v: _children(v) if type(v) is kind else None, ".", file_size
  )
  found = {k: v for k, v in leaves.items() if isinstance(v, torch_tensors.Tensor)}
  if not found:
    raise errors.Refused("it holds no tensor")
  dropped = [k for k in leaves if k not in found]
  logging.info("%s: %d tensors; dropped, as no tensors: %s", name, len(found), _few(dropped))
  return found


def _container(value: Mapping[str | int, Any]) -> str | None:
  """Returns the one key of a checkpoint that holds a state dict, or None if there is none."""
  keys = [k for k in _KEYS if isinstance(value.get(k), dict) and _holds_tensors(value[k])]
  if not keys or keys == list(_DINO):
    return keys[0] if keys else None
  if len(keys) > 1:
    raise errors.Refused(f"it holds several state dicts ({', '.join(keys)}), and it is not "
                         "clear which is meant")  # fmt: skip
  return keys[0]


def _direct(value: Mapping[str | int, Any]) -> bool:
  return any(isinstance(v, torch_tensors.Tensor) for v in value.values())


def _holds_tensors(value: Mapping[str | int, Any]) -> bool:
  """Tells whether a tensor is anywhere in nested dicts, which may refer to one another."""
  seen, pending = {id(value)}, [value]
  while pending:
    for part in pending.pop().values():
      if isinstance(part, torch_tensors.Tensor):
        return True
      if isinstance(part, dict) and id(part) not in seen:
        seen.add(id(part))
        pending.append(part)
  return False


def _children(value: Any) -> Mapping[str | int, Any]:
  return value.attributes if isinstance(value, pickle_machine.Object) else value


def _few(names: list[str]) -> str:
  """Returns the first names, shortened, and how many more there are."""
  shown = ", ".join(errors.quote(n)[1:-1] for n in names[:_SHOWN])
  more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
  return f"{shown}{more}" if names else "nothing"
