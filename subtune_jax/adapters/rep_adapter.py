"""RepAdapter: a low-rank linear map before a linear layer, which merges into it."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subtune_jax.adapters import rule as rule_lib


@dataclasses.dataclass(frozen=True)
class RepAdapter(rule_lib.Rule):
  """x + scale * up(down(x)) before a layer (Luo et al. 2023, arXiv 2302.08106, equations 5 to 8).

  `up` works in groups of channels, as there. Select the layers that read what attention and MLP
  read ("attention/qkv", "mlp/in"): without an activation the adapter is part of their kernel and
  bias (equation 7), and merges away. A layer without bias gets an adapter without. As in the
  authors' code `down` is Xavier-uniform and the rest zero.

  Attributes:
    rank: channels in between; a multiple of `groups`.
    scale: the paper tries 0.1 to 10 by task.
    groups: of `up`.
  """

  name: str = "repadapter"
  rank: int = 8
  scale: float = 1.0
  groups: int = 2
  merges: ClassVar[bool] = True

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.groups < 1 or self.rank < 1 or self.rank % self.groups:
      raise ValueError(f"rank is {self.rank}; it must be a multiple of groups, {self.groups}")

  def takes(self, target: rule_lib.Target) -> bool:
    """Linear layers of one input axis, the last: dense ones, and convolutions of 1x1."""
    return target.geometry is not None and target.layer.pointwise

  def check(self, targets: list[rule_lib.Target]) -> None:
    """Channels must divide into the groups."""
    for target in targets:
      if target.layer.fan_in % self.groups:
        raise ValueError(
          f"{self.name} at {target.path}: {target.layer.fan_in} channels are no multiple of "
          f"groups, {self.groups}"
        )

  def init(self, target: rule_lib.Target, key: jax.Array) -> dict[str, jax.Array]:
    """See the class."""
    width = target.layer.fan_in
    leaves = {
      "down": jax.nn.initializers.glorot_uniform()(key, (width, self.rank)),
      "up": jnp.zeros((self.rank // self.groups, width)),
    }
    if target.bias is None:
      return leaves
    return {**leaves, "down_bias": jnp.zeros(self.rank), "up_bias": jnp.zeros(width)}

  def __call__(self, target: rule_lib.Target, leaves: rule_lib.Leaves, call: rule_lib.Call) -> Any:
    """The layer's result on what the adapter makes of its input."""
    x = jnp.asarray(call.x)
    return call.proceed(x + self._added(leaves, x).astype(x.dtype))

  def _added(self, leaves: rule_lib.Leaves, x: jax.Array) -> jax.Array:
    own = {name: leaf.astype(x.dtype) for name, leaf in leaves.items()}
    h = x @ own["down"]
    if "down_bias" in own:
      h = h + rule_lib.along(own["down_bias"], h)
    y = h @ self._up(own)
    if "up_bias" in own:
      y = y + rule_lib.along(own["up_bias"], y)
    return self.scale * y

  def _up(self, leaves: rule_lib.Leaves) -> jax.Array:
    """`up` as one matrix [rank, width], zero between groups."""
    inner, width = leaves["up"].shape
    blocks = leaves["up"].reshape(inner, self.groups, -1)
    eye = jnp.eye(self.groups, dtype=blocks.dtype)
    return jnp.einsum("rgo,gk->grko", blocks, eye).reshape(self.rank, width)

  def _map(self, leaves: rule_lib.Leaves) -> tuple[jax.Array, jax.Array]:
    """(matrix [width, width], shift [width]): x M + c is the adapter."""
    up = self._up(leaves)
    shift = jnp.zeros(up.shape[1])
    if "up_bias" in leaves:
      shift = self.scale * (leaves["down_bias"] @ up + leaves["up_bias"])
    return jnp.eye(up.shape[1]) + self.scale * leaves["down"] @ up, shift

  def merge(self, target: rule_lib.Target, leaves: rule_lib.Leaves, own: rule_lib.Leaves) -> dict:
    """M W, and c W + b."""
    matrix, shift = self._map(leaves)
    return self._into(target, own, lambda kernel: matrix @ kernel, lambda kernel: shift @ kernel)

  def unmerge(self, target: rule_lib.Target, leaves: rule_lib.Leaves, own: rule_lib.Leaves) -> dict:
    """The inverse, by a linear solve."""
    matrix, shift = self._map(leaves)

    def base(kernel: jax.Array) -> jax.Array:
      return jnp.linalg.solve(matrix, kernel)

    return self._into(target, own, base, lambda kernel: -shift @ base(kernel))

  def _into(self, target: rule_lib.Target, own: rule_lib.Leaves, kernel: Any, bias: Any) -> dict:
    kind = target.kind
    old = own[kind.kernel]
    flat = old.reshape(old.shape[-2:]).astype(jnp.float32)
    new = {kind.kernel: kernel(flat).reshape(old.shape).astype(old.dtype)}
    if kind.bias in own:
      new[kind.bias] = (own[kind.bias] + bias(flat)).astype(own[kind.bias].dtype)
    return new
