"""Which channels go, by the magnitude of their weights, and the networks without them.

A channel's score is the norm of the weights that write it: with several writers (a shortcut, a
depthwise convolution) the mean over them. That of a head is the norm of its queries', keys' and
values' weights together. Biases do not count.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flax import traverse_util
import jax.numpy as jnp
import numpy as np

from subtune_jax.data import choices
from subtune_jax.models import batch_norm
from subtune_jax.pruning import groups as groups_lib

PyTree = Any
Kept = Mapping[str, np.ndarray]  # group -> sorted channels that stay
NORMS = ("l1", "l2")
SCOPES = ("local", "global")
MOST = 0.9  # share of a group that goes at most, by a global choice


def _flat(variables: PyTree) -> dict[str, Any]:
  kinds = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
  return traverse_util.flatten_dict(kinds, sep="/")


def _chosen(model: Any, blocks: Sequence[str]) -> list[groups_lib.Group]:
  """The groups that none but the blocks write."""
  if isinstance(blocks, str) or not blocks:
    raise ValueError(f"blocks is {blocks!r}; give a sequence of block names")
  for block in blocks:
    choices.check("block to prune", block, model.block_names)

  def inside(layer: str) -> bool:
    return any(layer.startswith(f"{block}/") for block in blocks)

  return [group for group in groups_lib.of(model) if all(map(inside, group.writers))]


def scores(flat: Mapping[str, Any], group: groups_lib.Group, norm: str) -> np.ndarray:
  """[channels] magnitude of what writes each channel, or head."""
  found = []
  for writer in group.writers:
    kernel = np.abs(np.asarray(flat[f"params/{writer}/kernel"], np.float64))
    power = 1 if norm == "l1" else 2
    sums = np.sum(kernel**power, axis=tuple(range(kernel.ndim - 1)))
    sums = sums.reshape(group.parts, -1, group.size).sum((0, 2))
    found.append(sums ** (1 / power))
  return np.mean(found, axis=0)


def choose(
  model: Any,
  variables: PyTree,
  blocks: Sequence[str],
  *,
  share: float = 0.5,
  norm: Literal["l1", "l2"] = "l2",
  scope: Literal["local", "global"] = "local",
) -> dict[str, np.ndarray]:
  """The channels that stay of those that the blocks alone write.

  The channels of a stage's shortcuts are among them only where all units of the stage are.

  Args:
    model: a ResNet, an EfficientNet, a ConvNeXt or a ViT.
    variables: its variables.
    blocks: of its `block_names`.
    share: of the channels that go, and of the heads, in [0, 1).
    norm: of the weights that write a channel.
    scope: "local": the share of each group, rounded down; "global": of all together, by scores over
      the mean of their group, and no group loses more than `MOST`.

  Returns:
    Group -> sorted positions; at least one stays.

  Raises:
    ValueError: another family, block, share, norm or scope, or blocks that write no group alone.
  """
  choices.check("norm", norm, NORMS)
  choices.check("scope", scope, SCOPES)
  if not 0 <= share < 1:
    raise ValueError(f"share is {share}; it is the part of the channels that go, in [0, 1)")
  flat = _flat(variables)
  found = {group.name: scores(flat, group, norm) for group in _chosen(model, blocks)}
  if not found:
    raise ValueError(f"the blocks {', '.join(blocks)} write no channels that no other block writes")
  if scope == "local":
    gone = {name: int(share * len(own)) for name, own in found.items()}
  else:
    gone = _global(found, share)
  return {name: np.sort(np.argsort(-own, kind="stable")[: len(own) - gone[name]])
          for name, own in found.items()}  # fmt: skip


def _global(found: Mapping[str, np.ndarray], share: float) -> dict[str, int]:
  """How many channels of each group go."""
  names = np.concatenate([[name] * len(own) for name, own in found.items()])
  relative = np.concatenate([own / max(own.mean(), 1e-30) for own in found.values()])
  room = {name: min(int(MOST * len(own)), len(own) - 1) for name, own in found.items()}
  gone = dict.fromkeys(found, 0)
  left = int(share * len(relative))
  for place in np.argsort(relative, kind="stable"):
    name = str(names[place])
    if left and gone[name] < room[name]:
      gone[name] += 1
      left -= 1
  return gone


def shrink(model: Any, variables: PyTree, kept: Kept) -> tuple[Any, PyTree]:
  """The network without the other channels, and its variables.

  Args:
    model: as for `choose`.
    variables: its variables.
    kept: of `choose`.
  """
  flat = _flat(variables)
  widths = dict(model.pruned)
  for group in groups_lib.of(model):
    if group.name not in kept:
      continue
    own = np.asarray(kept[group.name])
    for writer in group.writers:
      widths[writer] = len(own)
      for name in _written(flat, writer):
        flat[name] = jnp.take(flat[name], group.written(own, flat[name].shape[-1]), axis=-1)
    for reader in group.readers:
      name = f"params/{reader}/kernel"
      places = group.read(own, flat[name].shape[-2])
      flat[name] = jnp.take(flat[name], places, axis=flat[name].ndim - 2)
  made = traverse_util.unflatten_dict(flat, sep="/")
  return model.clone(pruned=tuple(sorted(widths.items()))), {**variables, **made}


def mask(model: Any, variables: PyTree, kept: Kept) -> PyTree:
  """The variables of the whole network with zeros for what `shrink` takes away."""
  flat = _flat(variables)
  for group in groups_lib.of(model):
    if group.name not in kept:
      continue
    for writer in group.writers:
      for name in _written(flat, writer):
        if name.startswith("params/"):
          stays = np.zeros(flat[name].shape[-1], np.float32)
          stays[group.written(kept[group.name], len(stays))] = 1
          flat[name] = flat[name] * batch_norm.per_channel(stays, flat[name].ndim)
  return {**variables, **traverse_util.unflatten_dict(flat, sep="/")}


def _written(flat: Mapping[str, Any], writer: str) -> list[str]:
  """The leaves of a layer, those of its BatchNorm too; the last axis of each is its channels."""
  leaves = ("params/{}/kernel", "params/{}/bias", "params/{}/bn/scale", "params/{}/bn/bias",
            "batch_stats/{}/bn/mean", "batch_stats/{}/bn/var")  # fmt: skip
  return [name for leaf in leaves if (name := leaf.format(writer)) in flat]
