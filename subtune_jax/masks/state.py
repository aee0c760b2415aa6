"""What a train step keeps and changes: the parameters, and the state that belongs to them."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import numpy as np

from subtune_jax.masks import parts
from subtune_jax.masks import tree as tree_lib


@dataclasses.dataclass(frozen=True)
class Params:
  """The parameters of a state, leaf by leaf in the order of jax.

  Attributes:
    get: state -> tree of parameters.
    paths: path of each leaf.
    frozen: whether each leaf is frozen.
    sources: for each leaf, the indices of the leaves of the state that it is made of.
  """

  get: Callable[[Any], Any]
  paths: list[str]
  frozen: list[bool]
  sources: list[list[int]]

  def leaves(self, state: Any) -> list[Any]:
    return jax.tree.leaves(self.get(state))


def _bits(leaf: Any) -> tuple[Any, ...]:
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  array = np.asarray(leaf)
  return array.shape, array.dtype, array.tobytes()


def compare(known: Params, old: Any, new: Any, broken: dict[str, list[str]]) -> list[str]:
  """Notes frozen leaves that changed in `broken`. Returns the trained leaves that did not move."""
  unmoved = []
  both = zip(known.paths, known.frozen, known.leaves(old), known.leaves(new), strict=True)
  for path, frozen, before, after in both:
    before, after = jnp.asarray(before), jnp.asarray(after)
    same = _bits(before) == _bits(after)
    if frozen and not same:
      difference = jnp.max(jnp.abs(after - before)) if before.shape == after.shape else "shape"
      broken[path].append(f"changed (by up to {difference:.3g})")
    elif not frozen and same:
      unmoved.append(path)
  if len(unmoved) == known.frozen.count(False):
    raise ValueError("no trained leaf moved in two steps: is the learning rate zero?")
  return unmoved


def _suffix_in_state(source: str, path: str) -> str:
  """Returns the part of a state's path that other trees of the state repeat (moments, averages).

  For "params/layers/kernel", source of the parameter "layers/3/kernel", it is "layers/kernel".
  """
  parts, first = source.split("/"), path.split("/")[0]
  return "/".join(parts[parts.index(first) :]) if first in parts else path


def find_owned(known: Params, state: Any, broken: dict[str, list[str]]) -> None:
  """Notes in `broken` the leaves of the state, besides the parameters, that frozen leaves own."""
  leaves, paths = jax.tree.leaves(state), tree_lib.paths(state)
  owners: dict[str, list[int]] = {}
  for i, path in enumerate(known.paths):
    for j in known.sources[i]:
      owners.setdefault(_suffix_in_state(paths[j], path), []).append(i)
  are_params = {j for sources in known.sources for j in sources}
  shapes = {suffix: {np.shape(leaves[j]) for i in ids for j in known.sources[i]}
            for suffix, ids in owners.items()}  # fmt: skip
  for j, path in enumerate(paths):
    if j in are_params or np.size(leaves[j]) == 0:
      continue
    parts = path.split("/")
    suffixes = ["/".join(parts[k:]) for k in range(len(parts))]
    suffix = next((s for s in suffixes if s in owners), None)  # the longest that fits
    if suffix is None or ("/" not in suffix and np.shape(leaves[j]) not in shapes[suffix]):
      continue
    for i in owners[suffix]:
      if known.frozen[i]:
        broken[known.paths[i]].append(f"owns state ({path}, {np.shape(leaves[j])})")


def state_bytes(known: Params, state: Any) -> int:
  are_params = {j for sources in known.sources for j in sources}
  rest = [(path, leaf) for j, (path, leaf)
          in enumerate(zip(tree_lib.paths(state), jax.tree.leaves(state), strict=True))
          if j not in are_params]  # fmt: skip
  optimiser = [pair for pair in rest if "opt_state" in pair[0].split("/")]
  return sum(jnp.asarray(leaf).nbytes for _, leaf in optimiser or rest)


def describe(get: Callable[[Any], Any], state: Any, labels: Any) -> Params:
  tree = get(state)
  label_of = parts.labels_by_path(tree, labels)
  paths = tree_lib.paths(tree)
  closed = jax.make_jaxpr(get)(state)
  num_out = len(closed.jaxpr.outvars)
  sources = []
  for i in range(num_out):
    _, used = partial_eval.dce_jaxpr(closed.jaxpr, [j == i for j in range(num_out)])
    sources.append([j for j, is_used in enumerate(used) if is_used])
  frozen = [label_of[path] == tree_lib.FROZEN for path in paths]
  if all(frozen):
    raise ValueError(f"every leaf is labelled {tree_lib.FROZEN!r}: there is no training to verify")
  return Params(get, paths, frozen, sources)
