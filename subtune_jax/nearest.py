"""The names that a misspelt one may have meant.

`subtune_jax.masks` has a search of its own, since it imports nothing of this library.
"""

from collections.abc import Iterable
import difflib


def names(given: str, known: Iterable[str], *, most: int = 3, cutoff: float = 0.5) -> list[str]:
  """Returns the most similar of `known`, the best first.

  Args:
    given: what was written.
    known: what there is.
    most: how many are returned.
    cutoff: least similarity, 0 (all) to 1 (equal).
  """
  return difflib.get_close_matches(given, list(known), most, cutoff)
