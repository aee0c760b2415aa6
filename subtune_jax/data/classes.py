"""The classes of one data set in the numbering of another's, by name."""

from collections.abc import Sequence
import difflib

from absl import logging

from subtune_jax.data import dataset
from subtune_jax.data.shifts import maps

DROP = ""  # "theirs=" leaves the class out


def indices(
  name: str, theirs: Sequence[str], ours: Sequence[str], label_map: Sequence[str] = ()
) -> tuple[int, ...]:
  """Returns the position in `ours` of each class in `theirs`; -1 for one that is left out.

  Names are equal only letter by letter.

  Args:
    name: of the set whose classes `theirs` are.
    theirs: its class names.
    ours: the head's.
    label_map: pairs "theirs=ours"; "theirs=" leaves the class out. Several may map to one.

  Raises:
    ValueError: a pair without "=", a target that the head lacks, or a class of neither.
  """
  pairs = {}
  for pair in label_map:
    left, mark, right = pair.rpartition("=")
    if not mark or not left:
      raise ValueError(f"data.label_map holds {pair!r}; give 'theirs=ours', or 'theirs=' to drop")
    if right != DROP and right not in ours:
      raise ValueError(
        f"data.label_map holds {pair!r}, but no class is {right!r}{_near(right, ours)}"
      )
    pairs[left] = right
  wanted = [pairs.get(label, label) for label in theirs]
  for label, target in zip(theirs, wanted, strict=True):
    if target != DROP and target not in ours:
      raise ValueError(
        f"{name} has the class {label!r}, which the training set lacks{_near(label, ours)}; give "
        f"data.label_map a pair '{label}=<class>', or '{label}=' to leave its images out"
      )
  position = {label: number for number, label in enumerate(ours)}
  return tuple(position[t] if t != DROP else -1 for t in wanted)


def by_name(
  test: dataset.Dataset, ours: Sequence[str], label_map: Sequence[str] = ()
) -> dataset.Dataset:
  """Returns the set with the labels of `ours`, matched by name. Errors: see `indices`."""
  found = indices(test.name, test.class_names, ours, label_map)
  missing = [label for number, label in enumerate(ours) if number not in found]
  if missing:
    logging.warning(
      "%s lacks %d of %d classes: %s", test.name, len(missing), len(ours), missing[:5]
    )
  if found == tuple(range(len(ours))):
    return test
  return maps.apply(test, found, tuple(ours))


def _near(name: str, ours: Sequence[str]) -> str:
  def plain(text: str) -> str:
    return text.casefold().replace("_", " ").replace("-", " ").strip()

  near = difflib.get_close_matches(plain(name), [plain(label) for label in ours], 3, 0.5)
  shown = [label for label in ours if plain(label) in near][:3] or list(ours[:3])
  return f" (nearest: {', '.join(map(repr, shown))})"
