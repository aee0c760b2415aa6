"""Adapters with a bottleneck: AdaptFormer beside a module, Houlsby's behind it."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subtune_jax.adapters import rule as rule_lib


def _relu(x: jax.Array) -> jax.Array:
  return jnp.maximum(x, 0)


def _gelu(x: jax.Array) -> jax.Array:
  return jax.nn.gelu(x, approximate=False)


def through(leaves: rule_lib.Leaves, x: jax.Array, activation: Callable[..., jax.Array]) -> Any:
  """up(activation(down(x))) along the last axis."""
  own = {name: leaf.astype(x.dtype) for name, leaf in leaves.items()}
  h = activation(x @ own["down"] + rule_lib.along(own["down_bias"], x))
  return h @ own["up"] + rule_lib.along(own["up_bias"], x)


def start(down: jax.Array, width_out: int) -> dict[str, jax.Array]:
  """Leaves of a bottleneck that adds nothing: zeros but for `down`."""
  rank = down.shape[1]
  return {
    "down": down, "down_bias": jnp.zeros(rank),
    "up": jnp.zeros((rank, width_out)), "up_bias": jnp.zeros(width_out),
  }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Beside(rule_lib.Rule):
  """What adapters of whole modules share.

  Attributes:
    rank: channels of the bottleneck.
  """

  rank: int = 8
  whole: ClassVar[bool] = True

  def __post_init__(self) -> None:
    super().__post_init__()
    if not isinstance(self.rank, int) or self.rank < 1:
      raise ValueError(f"rank is {self.rank!r}; it must be an integer of at least 1")


@dataclasses.dataclass(frozen=True)
class AdaptFormer(Beside):
  """y + scale * up(relu(down(x))) (Chen et al. 2022, arXiv 2205.13535, equations 2 and 3).

  Select the MLPs of a transformer: x is then what they read, behind the LayerNorm, as in the
  equations (the authors' code reads what is before it). `down` starts as torch's layers do,
  U(-1/sqrt(width), 1/sqrt(width)), the rest at zero. Module and bottleneck must read maps or tokens
  of one size, so it goes beside blocks of a convolutional network that keep the map, too.

  Attributes:
    scale: 0.1 as in the paper.
  """

  name: str = "adaptformer"
  rank: int = 64
  scale: float = 0.1

  def takes(self, target: rule_lib.Target) -> bool:
    """Modules that keep every axis but the last."""
    return bool(target.x and target.y and len(target.x) > 1 and target.x[:-1] == target.y[:-1])

  def init(self, target: rule_lib.Target, key: jax.Array) -> dict[str, jax.Array]:
    """See the class."""
    width = target.reads[-1]
    return start(rule_lib.uniform_fan_in(key, (width, self.rank), width), target.gives[-1])

  def __call__(self, target: rule_lib.Target, leaves: rule_lib.Leaves, call: rule_lib.Call) -> Any:
    """Both of the same input, added."""
    y = call.proceed(call.x)
    return y + (self.scale * through(leaves, call.x, _relu)).astype(y.dtype)


@dataclasses.dataclass(frozen=True)
class Houlsby(Beside):
  """y + up(gelu(down(y))) (Houlsby et al. 2019, arXiv 1902.00751, section 2.1 and figure 2).

  Select attention and MLP of every block: the adapter sits behind each, before the shortcut is
  added. `down` starts as a normal of standard deviation 0.01 cut at two, `up` at zero (there it is
  drawn likewise, nearly the identity; here it is the identity).
  """

  name: str = "houlsby"
  rank: int = 64

  def takes(self, target: rule_lib.Target) -> bool:
    """Modules that return an array with channels."""
    return bool(target.y and len(target.y) > 1)

  def init(self, target: rule_lib.Target, key: jax.Array) -> dict[str, jax.Array]:
    """See the class."""
    width = target.gives[-1]
    down = 0.01 * jax.random.truncated_normal(key, -2, 2, (width, self.rank))
    return start(down, width)

  def __call__(self, target: rule_lib.Target, leaves: rule_lib.Leaves, call: rule_lib.Call) -> Any:
    """The module's result and what the bottleneck makes of it."""
    y = call.proceed(call.x)
    return y + through(leaves, y, _gelu)


@dataclasses.dataclass(frozen=True)
class Convpass(Beside):
  """y + scale * up(g(conv(g(down(x))))), g(x) = x sigmoid(1.702 x) (Jie and Deng 2022, arXiv
  2207.07039, section 3.2, figure 3).

  Select attention and MLP of every block of a ViT. The 3x3 convolution runs over the patches, which
  must be a square; of tokens before them (class token, registers) each is a map of one position.
  Maps [n, h, w, channels] are taken as they are. As in the authors' code `down` is Xavier-uniform,
  the convolution starts as the identity, `up` at zero.

  Attributes:
    scale: the paper tries 0.01 to 10 by task.
    tokens_before: how many come before the patches; None: as few as leave a square.
  """

  name: str = "convpass"
  scale: float = 1.0
  tokens_before: int | None = None

  def takes(self, target: rule_lib.Target) -> bool:
    """Modules that read and return tokens or maps of one number of positions."""
    x, y = target.x, target.y
    return bool(x and y and len(x) in (3, 4) and x[:-1] == y[:-1])

  def check(self, targets: list[rule_lib.Target]) -> None:
    """Patches must be a square."""
    for target in targets:
      if len(target.reads) == 3:
        self._before(target.reads[1])

  def init(self, target: rule_lib.Target, key: jax.Array) -> dict[str, jax.Array]:
    """See the class."""
    width = target.reads[-1]
    down = jax.nn.initializers.glorot_uniform()(key, (width, self.rank))
    identity = jnp.zeros((3, 3, self.rank, self.rank)).at[1, 1].set(jnp.eye(self.rank))
    return {**start(down, target.gives[-1]), "conv": identity, "conv_bias": jnp.zeros(self.rank)}

  def __call__(self, target: rule_lib.Target, leaves: rule_lib.Leaves, call: rule_lib.Call) -> Any:
    """Both of the same input, added."""
    y = call.proceed(call.x)

    def convolved(h: jax.Array) -> jax.Array:
      return _quick_gelu(self._convolve(_quick_gelu(h), leaves))

    return y + (self.scale * through(leaves, call.x, convolved)).astype(y.dtype)

  def _convolve(self, h: jax.Array, leaves: rule_lib.Leaves) -> jax.Array:
    kernel, bias = leaves["conv"].astype(h.dtype), leaves["conv_bias"]
    if h.ndim == 4:
      return _same(h, kernel) + rule_lib.along(bias, h)
    before = self._before(h.shape[1])
    side = math.isqrt(h.shape[1] - before)
    patches = _same(h[:, before:].reshape(h.shape[0], side, side, -1), kernel)
    patches = patches.reshape(h.shape[0], side * side, -1)
    alone = h[:, :before] @ kernel[1, 1]
    return jnp.concatenate([alone, patches], axis=1) + rule_lib.along(bias, h)

  def _before(self, tokens: int) -> int:
    """Tokens before the patches."""
    before = self.tokens_before
    if before is None:
      before = tokens - math.isqrt(tokens) ** 2
    if math.isqrt(max(tokens - before, 0)) ** 2 != tokens - before:
      raise ValueError(
        f"{self.name}: {tokens} tokens without {before} before them are no square of patches; set "
        "tokens_before"
      )
    return before


def _same(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def _quick_gelu(x: jax.Array) -> jax.Array:
  return x * jax.nn.sigmoid(1.702 * x)
