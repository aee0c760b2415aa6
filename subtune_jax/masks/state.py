"""What a train step keeps and changes: the parameters, and the state that belongs to them."""

from collections.abc import Callable, Mapping, Sequence
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

  def trained(self, state: Any) -> list[Any]:
    return [x for x, frozen in zip(self.leaves(state), self.frozen, strict=True) if not frozen]


def _bits(leaf: Any) -> tuple[Any, ...]:
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  array = np.asarray(leaf)
  return array.shape, array.dtype, array.tobytes()


def compare(known: Params, states: Sequence[Any], broken: dict[str, list[str]]) -> list[str]:
  """Notes in `broken` the frozen leaves that a step changed.

  Args:
    known: the parameters.
    states: the first, and the one after each step; every later one is compared with the first, so
      that a change that the next step takes back is seen.
    broken: path of a parameter -> what is wrong with it.

  Returns:
    The trained leaves that no step moved.

  Raises:
    ValueError: no trained leaf moved.
  """
  first, *later = [known.leaves(state) for state in states]
  unmoved = []
  for i, (path, frozen) in enumerate(zip(known.paths, known.frozen, strict=True)):
    changes = [text for leaves in later if (text := _change(first[i], leaves[i]))]
    if frozen and changes:
      broken[path].append(changes[0])
    elif not frozen and not changes:
      unmoved.append(path)
  if len(unmoved) == known.frozen.count(False):
    raise ValueError("no trained leaf moved in two steps: is the learning rate zero?")
  return unmoved


def _change(before: Any, after: Any) -> str:
  """Says by how much two leaves differ; "" where they are equal bit by bit."""
  before, after = jnp.asarray(before), jnp.asarray(after)
  if _bits(before) == _bits(after):
    return ""
  if before.shape != after.shape or not jnp.issubdtype(before.dtype, jnp.number):
    return "changed"
  return f"changed (by up to {jnp.max(jnp.abs(after - before)):.3g})"


def _suffix_in_state(source: str, path: str) -> str:
  """Returns the part of a state's path that other trees of the state repeat (moments, averages).

  For "params/layers/kernel", source of the parameter "layers/3/kernel", it is "layers/kernel".
  """
  names, first = source.split("/"), path.split("/")[0]
  return "/".join(names[names.index(first) :]) if first in names else path


def find_owned(
  known: Params, states: Sequence[Any], read: set[int], broken: dict[str, list[str]]
) -> set[int]:
  """Notes in `broken` what belongs to frozen leaves by its path in the state.

  Leaves named after a frozen parameter (moments, averages), and arrays of numbers named after a
  module with frozen parameters alone that change (running statistics).

  Args:
    known: the parameters.
    states: the first, and the one after each step.
    read: leaves of the state that the loss depends on. Those of them that never change (a teacher,
      weights in the precision of the forward pass) are a part of the model, and no state.
    broken: path of a parameter, or of statistics -> what is wrong with it.

  Returns:
    The leaves of the state, besides the parameters, whose path names no parameter and no module.
  """
  versions = list(zip(*map(jax.tree.leaves, states), strict=True))
  leaves, paths = [version[0] for version in versions], tree_lib.paths(states[0])
  are_params = {j for sources in known.sources for j in sources}
  owners, modules = _owners(known, paths), _modules(known, states[0])
  unnamed = set()
  for j, path in enumerate(paths):
    if j in are_params or np.size(leaves[j]) == 0:
      continue
    suffix = _named_after(owners, path)
    shapes = {np.shape(leaves[k]) for i in owners.get(suffix, ()) for k in known.sources[i]}
    change = next(filter(None, (_change(leaves[j], later) for later in versions[j][1:])), "")
    if suffix and ("/" in suffix or np.shape(leaves[j]) in shapes):
      if change or j not in read:
        for i in owners[suffix]:
          if known.frozen[i]:
            broken[known.paths[i]].append(f"owns state ({path}, {np.shape(leaves[j])})")
    elif module := _module_of(modules, path, leaves[j]):
      if modules[module].frozen and change:
        text = f"statistics of {module}, which is frozen, {change}"
        broken.setdefault(path, []).append(text)
    else:
      unnamed.add(j)
  return unnamed


def _owners(known: Params, paths: Sequence[str]) -> dict[str, list[int]]:
  """Returns what a path of the state ends with -> the parameters that it is named after."""
  owners: dict[str, list[int]] = {}
  for i, path in enumerate(known.paths):
    for j in known.sources[i]:
      owners.setdefault(_suffix_in_state(paths[j], path), []).append(i)
  return owners


def _named_after(owners: Mapping[str, Any], path: str) -> str:
  """Returns the longest end of a path that names parameters, or ""."""
  names = path.split("/")
  return next((s for k in range(len(names)) if (s := "/".join(names[k:])) in owners), "")


@dataclasses.dataclass
class _Module:
  """What is known of a node above parameters: whether all are frozen, and their axes' sizes."""

  frozen: bool = True
  sizes: set[int] = dataclasses.field(default_factory=set)


def _modules(known: Params, state: Any) -> dict[str, _Module]:
  """Returns path -> module, for every node above parameters but the root."""
  modules: dict[str, _Module] = {}
  for path, frozen, leaf in zip(known.paths, known.frozen, known.leaves(state), strict=True):
    names = path.split("/")
    for k in range(1, len(names)):
      module = modules.setdefault("/".join(names[:k]), _Module())
      module.frozen &= frozen
      module.sizes |= set(np.shape(leaf))
  return modules


def _module_of(modules: Mapping[str, _Module], path: str, leaf: Any) -> str:
  """Returns the innermost module that a leaf is a statistic of, or "".

  Its path is that of the module, in any field of the state, with one name or two after it (a norm
  without parameters is known by what it follows); its last axis is one of the parameters.
  """
  leaf, names = jnp.asarray(leaf), path.split("/")
  if leaf.ndim == 0 or not jnp.issubdtype(leaf.dtype, jnp.floating):
    return ""
  for end in (len(names) - 1, len(names) - 2):
    for start in range(max(end, 0)):
      module = "/".join(names[start:end])
      if module in modules:
        return module if leaf.shape[-1] in modules[module].sizes else ""
  return ""


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
