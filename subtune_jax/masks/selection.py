"""Which leaves of a tree a selector names, and labels made of selectors."""

from collections.abc import Callable, Mapping, Sequence
import difflib
import fnmatch
from typing import Any

from subtune_jax.masks import tree as tree_lib

Tree = tree_lib.Tree
Selector = str | Callable[[str, Any], bool] | Sequence[Any]  # a sequence of selectors


def select(tree: Tree, selector: Selector) -> Tree:
  """Returns a tree of bools, shaped as `tree`: True where `selector` matches.

  Raises:
    ValueError: the selector, or a member of a sequence, matches no leaf.
  """
  leaves, treedef = tree_lib.flatten(tree)
  return treedef.unflatten(match(leaves, selector))


def label(tree: Tree, rules: Mapping[str, Selector], default: str = tree_lib.FROZEN) -> Tree:
  """Labels the leaves of `tree`: each by the rule that selects it, the others by `default`.

  Args:
    tree: parameters, or anything of their structure (shapes from `jax.eval_shape` do).
    rules: label -> selector.
    default: label of the leaves that no rule selects.

  Returns:
    A tree of strings, shaped as `tree`: what `optax.multi_transform` takes.

  Raises:
    ValueError: a selector matches nothing, or two rules claim the same leaf.
  """
  leaves, treedef = tree_lib.flatten(tree)
  labels: list[str | None] = [None] * len(leaves)
  clashes = []
  for name, selector in rules.items():
    if not isinstance(name, str):
      raise ValueError(f"a label must be a string, got {name!r}")
    for i, selected in enumerate(match(leaves, selector)):
      if selected and labels[i] is not None:
        clashes.append(f"{leaves[i][0]} ({labels[i]!r} and {name!r})")
      elif selected:
        labels[i] = name
  if clashes:
    raise ValueError(
      f"claimed by two rules: {tree_lib.shorten(clashes)}. Narrow one of the selectors: "
      "each leaf has one label"
    )
  return treedef.unflatten([default if name is None else name for name in labels])


def match(leaves: list[tuple[str, Any]], selector: Selector) -> list[bool]:
  """Returns whether `selector` matches, leaf by leaf. Raises if it matches none."""
  if isinstance(selector, str):
    parts = parse(selector)
    matches = [match_end(path.split("/"), parts) is not None for path, _ in leaves]
    if not any(matches):
      raise ValueError(_no_match(selector, [path for path, _ in leaves]))
    return matches
  if callable(selector):
    matches = [bool(selector(path, leaf)) for path, leaf in leaves]
    if not any(matches):
      name = getattr(selector, "__name__", repr(selector))
      raise ValueError(
        f"the predicate {name!r} is true for no leaf; paths are "
        f"{tree_lib.shorten([path for path, _ in leaves]) or 'none: the tree is empty'}"
      )
    return matches
  if isinstance(selector, Sequence | set | frozenset):
    if not selector:
      raise ValueError("an empty sequence selects nothing: leave the rule out")
    return [any(column) for column in zip(*[match(leaves, s) for s in selector], strict=True)]
  raise ValueError(
    f"{selector!r} is no selector: use a pattern, a predicate (path, leaf) -> bool, or a sequence"
  )


def parse(pattern: str) -> list[str]:
  """Returns the components of a pattern; the first is "" where it starts at the root."""
  parts = pattern.rstrip("/").split("/")
  if not any(parts) or "" in parts[1:] or "**" in parts:
    raise ValueError(
      f"bad pattern {pattern!r}: use component names separated by '/', such as 'block1/conv' or "
      "'block*/kernel'; it may start anywhere in a path, and '**' is not known"
    )
  return parts


def match_end(path: Sequence[str], parts: Sequence[str]) -> int | None:
  """Returns how many components of `path` the first match of a pattern takes, or None."""
  anchored = parts[0] == ""
  parts = parts[1:] if anchored else parts
  last = 0 if anchored else len(path) - len(parts)
  for start in range(last + 1):
    run = path[start : start + len(parts)]
    if len(run) == len(parts) and all(map(fnmatch.fnmatchcase, run, parts)):
      return start + len(parts)
  return None


def _no_match(pattern: str, found: list[str]) -> str:
  """Returns the message for a pattern that matches nothing, with the nearest names."""
  size = len(pattern.strip("/").split("/"))
  names: set[str] = set()
  for path in found:
    parts = path.split("/")
    names.update("/".join(parts[i : i + size]) for i in range(len(parts) - size + 1))
    names.update(parts)
  near = difflib.get_close_matches(pattern.strip("/"), sorted(names), n=5, cutoff=0.5)
  roots = sorted({path.split("/")[0] for path in found}, key=tree_lib.natural_key)
  nearest = f"the nearest names are {tree_lib.shorten(near)}; " if near else ""
  return (
    f"selector {pattern!r} matches no leaf; {nearest}"
    f"at the root there are {tree_lib.shorten(roots, 20) or 'none'}"
  )
