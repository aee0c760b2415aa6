"""The classes of one data set in the numbering of another's, by name.

Names are equal only letter by letter. Where they differ a label map says which is which: "OK=ok" is
their class "OK" and our "ok", "blurred=" leaves the class out.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from subtune_jax import nearest
from subtune_jax.data import dataset
from subtune_jax.data.shifts import maps

DROP = ""  # what a class that is left out becomes
_FIELD = "data.label_map"
_MOST_NAMED = 5


def parse(
  label_map: Sequence[str], ours: Sequence[str], sets: Sequence[dataset.Dataset]
) -> dict[str, str]:
  """Returns their name -> our name, or `DROP`.

  Args:
    label_map: pairs "theirs=ours" and "theirs=".
    ours: the head's classes.
    sets: the map has to be of classes of these.

  Raises:
    ValueError: a pair without "=", a class given twice, a class of ours that the head lacks, or one
      of theirs that no set has.
  """
  pairs: dict[str, str] = {}
  known = list(dict.fromkeys(name for own in sets for name in own.class_names))
  for pair in label_map:
    left, mark, right = pair.rpartition("=")
    if not mark or not left:
      raise ValueError(f"{_FIELD} holds {pair!r}; give 'theirs=ours', or 'theirs=' to drop")
    if left in pairs:
      raise ValueError(f"{_FIELD} gives the class {left!r} twice; give it once")
    if left not in known:
      where = words(own.name for own in sets) if sets else "none: data.ood is empty"
      raise ValueError(
        f"{_FIELD} holds {pair!r}, but no set that is matched by name has the class "
        f"{left!r}{_near(left, known)}; the sets are {where}"
      )
    if right != DROP and right not in ours:
      raise ValueError(f"{_FIELD} holds {pair!r}, but no class is {right!r}{_near(right, ours)}")
    pairs[left] = right
  return pairs


def by_name(
  theirs: dataset.Dataset, ours: Sequence[str], pairs: Mapping[str, str]
) -> tuple[dataset.Dataset, list[str]]:
  """Returns the set with the labels of `ours`, and what to say of it.

  Args:
    theirs: the set as loaded.
    ours: the head's classes.
    pairs: from `parse`.

  Raises:
    ValueError: a class that is neither ours nor in `pairs`, or no image left.
  """
  wanted = {name: pairs.get(name, name) for name in theirs.class_names}
  kept = [target for target in wanted.values() if target != DROP]
  fix = f"give {_FIELD} a pair 'THEIRS=OURS', or 'THEIRS=' to leave its images out"
  places = iter(positions(theirs.name, kept, "the training set", ours, fix))
  found = tuple(next(places) if target != DROP else -1 for target in wanted.values())
  notes = _notes(theirs, wanted)
  if found == tuple(range(len(ours))):
    return theirs, notes
  return maps.apply(theirs, found, tuple(ours)), notes


def positions(
  name: str, wanted: Sequence[str], of: str, ours: Sequence[str], fix: str
) -> tuple[int, ...]:
  """Returns the place of each of the classes `wanted`, of a set `name`, among `ours`, of `of`.

  Raises:
    ValueError: one is not there; the message ends with `fix`.
  """
  place = {label: number for number, label in enumerate(ours)}
  for label in wanted:
    if label not in place:
      raise ValueError(
        f"{name} has the class {label!r}, which {of} lacks{_near(label, ours)}; {fix}"
      )
  return tuple(place[label] for label in wanted)


def words(names: Iterable[str]) -> str:
  """Quoted names, the first few of many."""
  names = [repr(str(name)) for name in names]
  more = len(names) - _MOST_NAMED
  return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _notes(theirs: dataset.Dataset, wanted: Mapping[str, str]) -> list[str]:
  notes = []
  counts = np.bincount(theirs.labels, minlength=len(theirs.class_names))
  left = [number for number, target in enumerate(wanted.values()) if target == DROP]
  if left:
    names = words(theirs.class_names[number] for number in left)
    notes.append(
      f"{theirs.name}: {int(counts[left].sum())} of {len(theirs)} images are left out, of the "
      f"classes {names}"
    )
  for target in dict.fromkeys(wanted.values()):
    joined = [name for name, own in wanted.items() if own == target != DROP]
    if len(joined) > 1:
      notes.append(f"{theirs.name}: the classes {words(joined)} are all counted as {target!r}")
  if all(name.isdecimal() for name in theirs.class_names):
    notes.append(
      f"{theirs.name}: the classes are called by numbers ({words(theirs.class_names)}) and are "
      "matched as they are written; check that they count as the training set does"
    )
  return notes


def _near(name: str, ours: Sequence[str]) -> str:
  def plain(text: str) -> str:
    return text.casefold().replace("_", " ").replace("-", " ").strip()

  near = nearest.names(plain(name), map(plain, ours))
  shown = [label for label in ours if plain(label) in near][:3] or list(ours[:3])
  return f" (nearest: {', '.join(map(repr, shown))})" if shown else ""
