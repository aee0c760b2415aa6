"""Frozen leaves that a step keeps in its state where no name tells: found by disturbing the step.

The step is run again with other values in the trained leaves, and with others in the frozen ones.
What changes in the new state shows what it is made of, whatever its layout and its names.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np

from subtune_jax.masks import state as state_lib
from subtune_jax.masks import tree as tree_lib

Run = Callable[[Any], Any]  # state -> new state
MIN_SIZE = 2  # elements of a leaf that is looked for: any two numbers are multiples of each other
MAX_PADDING = 1024  # elements


def reads(function: Callable[..., Any], state: Any, batch: Any) -> set[int]:
  """Returns the indices of the leaves of `state` that `function(state, batch)` depends on."""
  closed = jax.make_jaxpr(function)(state, batch)
  _, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
  return set(np.flatnonzero(used[: len(jax.tree.leaves(state))]).tolist())


def find(
  known: state_lib.Params,
  run: Run,
  state: Any,
  unnamed: set[int],
  useful: set[int],
  broken: dict[str, list[str]],
) -> None:
  """Notes in `broken` the frozen leaves that have a copy, an average or a slot in the state.

  Args:
    known: the parameters.
    run: the step.
    state: to start from, as the step returned it, so that moments and averages are filled.
    unnamed: leaves of the state, no parameters, whose path says nothing of their owner.
    useful: leaves of the state that the loss or the new trained leaves depend on.
    broken: path of a parameter -> what is wrong with it.
  """
  leaves, paths = jax.tree.leaves(state), tree_lib.paths(state)
  wanted = [j for j in sorted(unnamed) if _is_float_array(leaves[j])]
  if not wanted:
    return
  base = jax.tree.leaves(run(state))
  by_trained = _disturbed(known, run, state, [i for i, f in enumerate(known.frozen) if not f])
  active = {j: _changed(base[j], by_trained[j]) for j in wanted}
  found = _slots(known, state, {paths[j]: active[j] for j in wanted})
  found += _copies(known, run, state, base, {j: active[j] for j in wanted if j not in useful})
  for i, text in dict.fromkeys(found):
    broken[known.paths[i]].append(text)


def _slots(
  known: state_lib.Params, state: Any, active: dict[str, np.ndarray]
) -> list[tuple[int, str]]:
  """Frozen leaves with a place in a container of the state that has one for every parameter.

  Such a container (an array, or a node with all arrays below it) has as many elements as the
  parameters, or a multiple, and perhaps padding at its end; in the order of the parameters, most of
  those of trained leaves depend on the trained leaves and none of those of frozen leaves does.
  """
  sizes = [int(np.size(leaf)) for leaf in known.leaves(state)]
  is_trained = np.repeat([not frozen for frozen in known.frozen], sizes)
  everything = zip(tree_lib.paths(state), jax.tree.leaves(state), strict=True)
  arrays = [path for path, leaf in everything if _is_float_array(leaf)]
  found, explained = list[tuple[int, str]](), set[str]()
  for prefix in _containers(active):
    members = [path for path in arrays if f"{path}/".startswith(f"{prefix}/")]
    if not set(members) <= set(active) or set(members) <= explained:
      continue  # it holds parameters or state with names; or all of it was found already
    marks = np.concatenate([active[path].ravel() for path in members])
    number, padding = divmod(marks.size, len(is_trained))
    slots, rest = np.split(marks, [marks.size - padding])
    if padding >= MAX_PADDING or rest.any():
      continue
    for row in slots.reshape(number, len(is_trained)):
      if row[is_trained].mean() >= 0.5 and not row[~is_trained].any():
        explained |= set(members)
        text = f"owns state (a part of {prefix}, {marks.size} numbers)"
        found += [(i, text) for i, size in enumerate(sizes) if known.frozen[i] and size]
  return found


def _containers(paths: Iterable[str]) -> list[str]:
  """Returns the paths and those of all nodes above them, the innermost first."""
  names = [path.split("/") for path in paths]
  found = {"/".join(parts[: k + 1]) for parts in names for k in range(len(parts))}
  return sorted(found, key=lambda path: (-path.count("/"), path))


def _copies(
  known: state_lib.Params, run: Run, state: Any, base: list[Any], active: dict[int, np.ndarray]
) -> list[tuple[int, str]]:
  """Frozen leaves of which the state keeps a copy or an average that the training never reads.

  When the leaf alone is disturbed, as many numbers of one array change, and in proportion.
  """
  frozen = [i for i, is_frozen in enumerate(known.frozen) if is_frozen]
  paths = tree_lib.paths(state)

  def differences(ids):
    """Array -> the differences in those of its numbers that trained leaves do not move."""
    new = _disturbed(known, run, state, ids)
    masks = {j: _changed(base[j], new[j]) & ~moves for j, moves in active.items()}
    return {
      j: (_numbers(new[j]) - _numbers(base[j]))[mask] for j, mask in masks.items() if mask.any()
    }

  found: list[tuple[int, str]] = []
  if not active or not differences(frozen):
    return found
  before = known.leaves(state)
  for i in frozen:
    after = known.leaves(_disturb(known, state, [i]))
    expected = (_numbers(after[i]) - _numbers(before[i])).ravel()
    if expected.size < MIN_SIZE or not expected.any():
      continue
    for j, difference in differences([i]).items():
      if difference.size == expected.size and _are_parallel(difference, expected):
        found.append((i, f"owns state (a copy or an average in {paths[j]})"))
  return found


def _are_parallel(a: np.ndarray, b: np.ndarray) -> bool:
  return abs(a @ b) > (1 - 1e-4) * np.linalg.norm(a) * np.linalg.norm(b)


def _disturbed(known: state_lib.Params, run: Run, state: Any, ids: Sequence[int]) -> list[Any]:
  """Returns the leaves of the new state when the parameters `ids` have other values."""
  return jax.tree.leaves(run(_disturb(known, state, ids)))


def _disturb(known: state_lib.Params, state: Any, ids: Sequence[int]) -> Any:
  """Returns `state` with other values in the parameters `ids`.

  An array that other parameters are made of as well (stacked layers) stays as it is.
  """
  leaves, structure = jax.tree.flatten(state)
  others = {j for i, sources in enumerate(known.sources) if i not in ids for j in sources}
  for j in {j for i in ids for j in known.sources[i]} - others:
    if _is_float_array(leaves[j], scalars=True):
      draw = np.random.default_rng(j).normal(size=(2, *np.shape(leaves[j])))
      value = _numbers(leaves[j]) * (1 + 0.5 * draw[0]) + 0.01 * draw[1]
      leaves[j] = jax.device_put(jnp.asarray(value, leaves[j].dtype), leaves[j].sharding)
  return jax.tree.unflatten(structure, leaves)


def _is_float_array(leaf: Any, scalars: bool = False) -> bool:
  return jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating) and np.size(leaf) >= 2 - scalars


def _numbers(leaf: Any) -> np.ndarray:
  return np.asarray(leaf).astype(np.float64)


def _changed(a: Any, b: Any) -> np.ndarray:
  a, b = _numbers(a), _numbers(b)
  return (a != b) & ~(np.isnan(a) & np.isnan(b))
