"""Runs a pickle without an unpickler: the few opcodes that plain data and tensors need.

`pickle.Unpickler` with a strict `find_class` still obeys opcodes that set attributes of objects or
ask for gigabytes (a memo index of 2**32). Here a pickle can build numbers, text, tuples, lists and
dicts with text keys, and call functions that the caller hands in; memory stays proportional to
the pickle's length.
"""

from collections.abc import Callable
import io
import pickletools
from typing import Any


class Refused(Exception):
  """The pickle asks for something that its reader does not admit."""


class Damaged(Exception):
  """The pickle is malformed or ends early."""


class _Callable:
  """A function that the pickle may call, told apart from data."""

  def __init__(self, function: Callable[..., Any]):
    self.function = function


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
      raise Damaged("a pickle takes more values than it made")
    values = self.stack[cut:]
    del self.stack[cut:]
    return values

  def pop_mark(self) -> list[Any]:
    """Removes and returns all values above the last mark."""
    if not self.marks:
      raise Damaged("a pickle closes a group that it did not open")
    values = self.stack[self.marks[-1] :]
    del self.stack[self.marks.pop() :]
    return values

  def set_items(self, pairs: list[Any]) -> None:
    target = self.stack[-1]
    if not isinstance(target, dict) or len(pairs) % 2:
      raise Damaged("a pickle sets items of something that is not a dict")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
      if not isinstance(key, str):
        raise Damaged("a dict has a key that is not text")
      target[key] = value

  def append(self, values: list[Any]) -> None:
    if not isinstance(self.stack[-1], list):
      raise Damaged("a pickle appends to something that is not a list")
    self.stack[-1].extend(values)

  def look_up(self, name: str) -> None:
    value = self.resolve(name)
    self.push(_Callable(value) if callable(value) else value)

  def stack_global(self) -> None:
    module, attribute = self.pop(2)
    if not isinstance(module, str) or not isinstance(attribute, str):
      raise Damaged("a pickle looks up a name that is not text")
    self.look_up(f"{module}.{attribute}")

  def reduce(self) -> None:
    function, arguments = self.pop(2)
    if not isinstance(function, _Callable) or not isinstance(arguments, tuple):
      raise Refused("it calls something that is not an admitted function")
    self.push(function.function(*arguments))

  def build(self) -> None:
    (state,) = self.pop(1)  # attributes, such as a state dict's _metadata: not kept
    if not isinstance(state, dict) or not isinstance(self.stack[-1], dict):
      raise Refused("it sets attributes of something that is not a dict")


_Step = Callable[[_Machine, Any], None]


def _pusher(value: Callable[[Any], Any]) -> _Step:
  return lambda machine, argument: machine.push(value(argument))


_OPCODES: dict[str, _Step] = {
  **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, a: None),
  **dict.fromkeys(
    ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINUNICODE", "SHORT_BINUNICODE"),
    _pusher(lambda a: a),
  ),
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
  "REDUCE": lambda m, a: m.reduce(),
  "BUILD": lambda m, a: m.build(),
}


def load(
  stream: io.BytesIO, resolve: Callable[[str], Any], persistent: Callable[[Any], Any]
) -> Any:
  """Runs one pickle and returns its value; the stream is left behind it.

  Args:
    stream: positioned at the pickle.
    resolve: from "module.attribute" to data or to a function that the pickle may call; raises
      `Refused` for every other name.
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
        raise Refused(f"it uses pickle opcode {opcode.name} at byte {position}")
      step(machine, argument)
    (value,) = machine.stack
  except (ValueError, TypeError, IndexError, KeyError) as e:
    raise Damaged(f"a pickle is malformed or ends early, near byte {stream.tell()}") from e
  return value
