"""One wording for a name that is not among those allowed."""

from collections.abc import Iterable

from subtune_jax import nearest


def check(kind: str, value: object, allowed: Iterable[str]) -> None:
  """Raises ValueError when `value` is not in `allowed`, with the nearest names and all of them.

  Args:
    kind: what is being named, for the message ("data set", "split", ...).
    value: the name that was asked for.
    allowed: the names that exist.
  """
  allowed = tuple(allowed)
  if isinstance(value, str) and value in allowed:
    return
  near = nearest.names(str(value), allowed)
  hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
  raise ValueError(f"Unknown {kind} {value!r}.{hint} Allowed: {', '.join(map(repr, allowed))}.")
