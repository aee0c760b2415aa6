"""VPT: trained tokens among those of a transformer."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subtune_jax.adapters import rule as rule_lib


@dataclasses.dataclass(frozen=True)
class VPT(rule_lib.Rule):
  """Prompts [prompts, width] beside the tokens (Jia et al. 2022, arXiv 2203.12119, section 3.2).

  Select the blocks of a transformer. Deep: each has prompts of its own, whose results are dropped
  behind it. Shallow: those of the first run through all of them and are dropped behind the last.
  They are the last tokens, where the paper has them behind the class token; attention does not see
  an order, and positions are added before. They start as U(-v, v), v = sqrt(6 / (3 patch^2 +
  width)), as in the authors' code. Attention sees them from the first step, so a fresh VPT does
  change the results, unlike all other adapters here, and it merges into nothing.

  Attributes:
    prompts: how many.
    deep: see above.
    patch_size: side of a patch in pixels, for the initialisation.
  """

  name: str = "vpt"
  prompts: int = 10
  deep: bool = True
  patch_size: int = 16
  whole: ClassVar[bool] = True

  def __post_init__(self) -> None:
    super().__post_init__()
    if not isinstance(self.prompts, int) or self.prompts < 1:
      raise ValueError(f"prompts is {self.prompts!r}; it must be an integer of at least 1")

  def takes(self, target: rule_lib.Target) -> bool:
    """Modules from tokens [n, tokens, width] to the same."""
    return bool(target.x and len(target.x) == 3 and target.x == target.y)

  def place(self, targets: list[rule_lib.Target]) -> list[tuple[rule_lib.Target, rule_lib.Rule]]:
    """Deep: all of them; shallow: the first brings prompts, the last drops them."""
    if self.deep:
      return [(target, self) for target in targets]
    if any(target.stack for target in targets):
      raise ValueError("shallow prompts do not go into stacked layers; use deep=True")
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    ends = [_Shallow(**fields, first=target == targets[0], last=target == targets[-1])
            for target in targets]  # fmt: skip
    return list(zip(targets, ends, strict=True))

  def init(self, target: rule_lib.Target, key: jax.Array) -> dict[str, jax.Array]:
    """See the class."""
    width = target.reads[-1]
    bound = (6 / (3 * self.patch_size**2 + width)) ** 0.5
    shape = (self.prompts, width)
    return {"prompts": jax.random.uniform(key, shape, jnp.float32, -bound, bound)}

  def __call__(self, target: rule_lib.Target, leaves: rule_lib.Leaves, call: rule_lib.Call) -> Any:
    """The block on the tokens and the prompts."""
    return call.proceed(self.beside(leaves, call.x))[:, : -self.prompts]

  def beside(self, leaves: rule_lib.Leaves, x: jax.Array) -> jax.Array:
    """The tokens, then the prompts."""
    prompts = jnp.broadcast_to(leaves["prompts"][None], (x.shape[0], *leaves["prompts"].shape))
    return jnp.concatenate([x, prompts.astype(x.dtype)], axis=1)


@dataclasses.dataclass(frozen=True)
class _Shallow(VPT):
  """At one of the blocks: whether prompts come in before it, and are dropped behind it."""

  first: bool = False
  last: bool = False

  @property
  def leafless(self) -> bool:
    """Prompts are the first's."""
    return not self.first

  def __call__(self, target: rule_lib.Target, leaves: rule_lib.Leaves, call: rule_lib.Call) -> Any:
    """The block on what it reads, prompts among it."""
    y = call.proceed(self.beside(leaves, call.x) if self.first else call.x)
    return y[:, : -self.prompts] if self.last else y
