"""Runs a pickle without an unpickler: the few opcodes that plain data and tensors need.

`pickle.Unpickler` with a strict `find_class` still obeys opcodes that set attributes of objects or
ask for gigabytes (a memo index of 2**32). Here a pickle can build numbers, text, tuples, lists and
dicts with keys of text or integers, make inert objects of the classes that the caller names, and
call functions that the caller hands in; memory stays proportional to the pickle's length.
"""

from collections.abc import Callable
import io
import pickletools
from typing import Any

from subtune_jax.weights import errors


class Kind:
  """A class that the pickle may make objects of."""


class Object:
  """An object of a `Kind`: attributes, and nothing that could be called."""

  def __init__(self):
    self.attributes: dict[str | int, Any] = {}


class _Opaque:
  """A value that is of no use to a reader of tensors."""


OPAQUE = _Opaque()


class _Callable:
  """A function that the pickle may call, told apart from data."""

  def __init__(self, function: Callable[..., Any]):
    self.function = function


def set_items(target: dict[str | int, Any], keys: list[Any], values: list[Any]) -> None:
  """Sets items that the dict does not have yet.

  Raises:
    Damaged: a key that is neither text nor a 64-bit integer, or that is there already.
  """
  for key, value in zip(keys, values, strict=True):
    if not isinstance(key, str) and not (type(key) is int and -(2**63) <= key < 2**63):
      raise errors.Damaged("a dict has a key that is neither text nor a 64-bit integer")
    if key in target:
      raise errors.Damaged(f"a dict has the key {errors.quote(str(key))} twice")
    target[key] = value


class _Machine:
  """The stack, the marks in it, and the memo."""

  def __init__(self, resolve: Callable[[str], Any], persistent: Callable[[Any], Any]):
    self.stack: list[Any] = []
    self.marks: list[int] = []
    self.memo: dict[int, Any] = {}
    self.resolve = resolve
    self.persistent = persistent

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def pop(self, count: int) -> list[Any]:
    """Removes and returns the topmost `count` values."""
    cut = len(self.stack) - count
    if cut < max([0, *self.marks[-1:]]):
      raise errors.Damaged("a pickle takes more values than it made")
    values = self.stack[cut:]
    del self.stack[cut:]
    return values

  def pop_mark(self) -> list[Any]:
    """Removes and returns all values above the last mark."""
    if not self.marks:
      raise errors.Damaged("a pickle closes a group that it did not open")
    values = self.stack[self.marks[-1] :]
    del self.stack[self.marks.pop() :]
    return values

  def set_items(self, pairs: list[Any]) -> None:
    target = self.stack[-1]
    if not isinstance(target, dict) or len(pairs) % 2:
      raise errors.Damaged("a pickle sets items of something that is not a dict")
    set_items(target, pairs[::2], pairs[1::2])

  def append(self, values: list[Any]) -> None:
    if not isinstance(self.stack[-1], list):
      raise errors.Damaged("a pickle appends to something that is not a list")
    self.stack[-1].extend(values)

  def look_up(self, name: str) -> None:
    value = self.resolve(name)
    self.push(_Callable(value) if callable(value) else value)

  def stack_global(self) -> None:
    module, attribute = self.pop(2)
    if not isinstance(module, str) or not isinstance(attribute, str):
      raise errors.Damaged("a pickle looks up a name that is not text")
    self.look_up(f"{module}.{attribute}")

  def reduce(self) -> None:
    function, arguments = self.pop(2)
    if not isinstance(function, _Callable) or not isinstance(arguments, tuple):
      raise errors.Refused("it calls something that is not an admitted function")
    self.push(function.function(*arguments))

  def make_object(self) -> None:
    kind, arguments = self.pop(2)
    if not isinstance(kind, Kind) or arguments != ():
      raise errors.Refused("it makes an object of something that is not an admitted class")
    self.push(Object())

  def build(self) -> None:
    (state,) = self.pop(1)
    target = self.stack[-1]
    if target is OPAQUE:
      return
    if not isinstance(target, dict | Object) or not isinstance(state, dict):
      raise errors.Refused("it sets the state of something that has no plain attributes")
    if isinstance(target, Object):  # of a dict, such as a state dict's _metadata: not kept
      if target.attributes:
        raise errors.Damaged("a pickle sets the state of an object twice")
      target.attributes = state


_Step = Callable[[_Machine, Any], None]


def _pusher(value: Callable[[Any], Any]) -> _Step:
  return lambda machine, argument: machine.push(value(argument))


_VALUES = (
  *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
  *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
)

_OPCODES: dict[str, _Step] = {
  **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, a: None),
  **dict.fromkeys(_VALUES, _pusher(lambda a: a)),
  **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES"), _pusher(lambda a: OPAQUE)),
  "NONE": _pusher(lambda a: None),
  "NEWTRUE": _pusher(lambda a: True),
  "NEWFALSE": _pusher(lambda a: False),
  "EMPTY_DICT": _pusher(lambda a: {}),
  "EMPTY_LIST": _pusher(lambda a: []),
  "EMPTY_TUPLE": _pusher(lambda a: ()),
  "MARK": lambda m, a: m.marks.append(len(m.stack)),
  "TUPLE": lambda m, a: m.push(tuple(m.pop_mark())),
  "TUPLE1": lambda m, a: m.push(tuple(m.pop(1))),
  "TUPLE2": lambda m, a: m.push(tuple(m.pop(2))),
  "TUPLE3": lambda m, a: m.push(tuple(m.pop(3))),
  "APPEND": lambda m, a: m.append(m.pop(1)),
  "APPENDS": lambda m, a: m.append(m.pop_mark()),
  "SETITEM": lambda m, a: m.set_items(m.pop(2)),
  "SETITEMS": lambda m, a: m.set_items(m.pop_mark()),
  **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda m, a: m.memo.update({a: m.stack[-1]})),
  "MEMOIZE": lambda m, a: m.memo.update({len(m.memo): m.stack[-1]}),
  **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, a: m.push(m.memo[a])),
  "GLOBAL": lambda m, a: m.look_up(a.replace(" ", ".")),
  "INST": lambda m, a: m.look_up(a.replace(" ", ".")),
  "STACK_GLOBAL": lambda m, a: m.stack_global(),
  "BINPERSID": lambda m, a: m.push(m.persistent(m.pop(1)[0])),
  "NEWOBJ": lambda m, a: m.make_object(),
  "REDUCE": lambda m, a: m.reduce(),
  "BUILD": lambda m, a: m.build(),
}


def load(
  stream: io.BytesIO, resolve: Callable[[str], Any], persistent: Callable[[Any], Any]
) -> Any:
  """Runs one pickle and returns its value; the stream is left behind it.

  Args:
    stream: positioned at the pickle.
    resolve: from "module.attribute" to data, to a `Kind`, or to a function that the pickle may
      call; raises `Refused` for every other name. Such a function must cost no more memory than
      its call takes bytes.
    persistent: from a persistent id to its object.

  Raises:
    Refused: a name or an opcode that is not admitted.
    Damaged: a pickle that is malformed or ends early.
  """
  machine = _Machine(resolve, persistent)
  try:
    for opcode, argument, position in pickletools.genops(stream):
      step = _OPCODES.get(opcode.name)
      if step is None:
        raise errors.Refused(f"it uses pickle opcode {opcode.name} at byte {position}")
      step(machine, argument)
    (value,) = machine.stack
  except (ValueError, TypeError, IndexError, KeyError) as e:
    near = f"near byte {stream.tell()}"
    raise errors.Damaged(f"a pickle is malformed or ends early, {near}") from e
  return value
