"""Regular expressions of files that are not trusted: the same answers as `re`, in bounded time.

Where an expression can end is computed as a set of positions, so that nothing is tried twice.
Expressions that look back or refer to groups are refused, since that needs trying.
"""

from collections.abc import Callable
import re
from re import _constants, _parser  # type: ignore[attr-defined]  # its tree is read, nothing is run
import warnings

MAX_LENGTH = 2_000  # characters of an expression
_MAX_STEPS = 100_000  # parts of an expression looked at for one name
_MAX_PARTS = 10_000  # parts of an expression
_MAX_DEPTH = 30  # of parts in parts

_CATEGORIES = {
  _constants.CATEGORY_DIGIT: str.isdecimal,
  _constants.CATEGORY_SPACE: str.isspace,
  _constants.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
}
_NOT_CATEGORIES = {
  _constants.CATEGORY_NOT_DIGIT: _constants.CATEGORY_DIGIT,
  _constants.CATEGORY_NOT_SPACE: _constants.CATEGORY_SPACE,
  _constants.CATEGORY_NOT_WORD: _constants.CATEGORY_WORD,
}
_STARTS = (_constants.AT_BEGINNING, _constants.AT_BEGINNING_STRING)
_ENDS = (_constants.AT_END, _constants.AT_END_STRING)


class PatternError(ValueError):
  """An expression that is broken, or that is not evaluated here."""


class Pattern:
  """A regular expression.

  Raises:
    PatternError: it is no regular expression, is too long, or needs trying.
  """

  def __init__(self, text: str):
    self.text = text
    if len(text) > MAX_LENGTH:
      raise PatternError(f"it has {len(text)} characters, allowed are {MAX_LENGTH}")
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = _parser.parse(text)
    except (re.error, RecursionError, OverflowError) as e:
      raise PatternError(f"it is no regular expression: {e}") from e
    if tree.state.flags & ~re.UNICODE:
      raise PatternError("it has flags")
    self._tree = list(tree)
    _count(self._tree)

  def fullmatch(self, name: str) -> bool:
    """Whether it matches the whole of a name.

    Raises:
      PatternError: it takes too many steps.
    """
    return len(name) in _Run(name).ends(self._tree, {0})

  def match(self, name: str) -> bool:
    """Whether it matches the beginning of a name. Errors: those of `fullmatch`."""
    return bool(_Run(name).ends(self._tree, {0}))


def _count(tree: list, depth: int = 0) -> int:
  """Checks every part of an expression."""
  total = 0
  if depth > _MAX_DEPTH:
    raise PatternError("it is nested too deep")
  for op, value in tree:
    total += 1 + sum(_count(list(own), depth + 1) for own in _inner(op, value))
    if total > _MAX_PARTS:
      raise PatternError("it has too many parts")
  return total


def _inner(op: object, value: tuple) -> list:
  if op in _PLAIN:
    return []
  if op is _constants.BRANCH:
    return value[1]
  if op in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
    return [value[2]]
  if op is _constants.SUBPATTERN:
    if value[1] or value[2]:
      raise PatternError("it has flags")
    return [value[3]]
  if op in (_constants.ASSERT, _constants.ASSERT_NOT) and value[0] > 0:
    return [value[1]]
  if op is _constants.AT and value in (*_STARTS, *_ENDS):
    return []
  raise PatternError(f"it uses {str(op).lower()}, which is not evaluated here")


_PLAIN = (_constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY, _constants.IN)


class _Run:
  """One name: ends(tree, starts) are the positions where the tree can end."""

  def __init__(self, name: str):
    self._name = name
    self._steps = 0

  def ends(self, tree: list, starts: set[int]) -> set[int]:
    for op, value in tree:
      self._steps += 1
      if self._steps > _MAX_STEPS:
        raise PatternError("it takes too many steps")
      if not starts:
        return starts
      starts = self._step(op, value, starts)
    return starts

  def _step(self, op: object, value, starts: set[int]) -> set[int]:
    if op in _PLAIN:
      fits = _character(op, value)
      return {i + 1 for i in starts if i < len(self._name) and fits(self._name[i])}
    if op is _constants.BRANCH:
      return set().union(*(self.ends(list(own), starts) for own in value[1]))
    if op in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
      least, most, tree = value
      return self._repeated(least, most, list(tree), starts)
    if op is _constants.SUBPATTERN:
      return self.ends(list(value[3]), starts)
    if op is _constants.AT:
      wanted = 0 if value in _STARTS else len(self._name)
      return starts & {wanted}
    wanted = op is _constants.ASSERT
    return {i for i in starts if bool(self.ends(list(value[1]), {i})) == wanted}

  def _repeated(self, least: int, most: int, tree: list, starts: set[int]) -> set[int]:
    for done in range(least):
      new = self.ends(tree, starts)
      if new == starts or not new:  # then it stays so
        starts, least = new, done + 1
        break
      starts = new
    found, fresh, left = set(starts), set(starts), most - least
    while fresh and left > 0:
      fresh = self.ends(tree, fresh) - found
      found |= fresh
      left -= 1
    return found


def _character(op: object, value) -> Callable[[str], bool]:
  if op is _constants.LITERAL:
    return lambda c: ord(c) == value
  if op is _constants.NOT_LITERAL:
    return lambda c: ord(c) != value
  if op is _constants.ANY:
    return lambda c: c != "\n"
  return lambda c: _in_set(value, c)


def _in_set(items: list, c: str) -> bool:
  negated = bool(items) and items[0][0] is _constants.NEGATE
  for op, value in items[1:] if negated else items:
    if op is _constants.LITERAL:
      found = ord(c) == value
    elif op is _constants.RANGE:
      found = value[0] <= ord(c) <= value[1]
    elif value in _NOT_CATEGORIES:
      found = not _CATEGORIES[_NOT_CATEGORIES[value]](c)
    else:
      found = _CATEGORIES[value](c)
    if found:
      return not negated
  return negated
