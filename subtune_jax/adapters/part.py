"""An adapter on one part of a layer's outputs, such as the queries of a kernel that makes three."""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subtune_jax.adapters import layer as layer_lib
from subtune_jax.adapters import lora
from subtune_jax.adapters import rule as rule_lib


@dataclasses.dataclass(frozen=True)
class Part(rule_lib.Rule):
  """LoRA or DoRA on one of the equal parts into which a layer's outputs are cut.

  >>> queries = adapters.Part(rule=adapters.LoRA("attention/qkv", rank=4, name="q"), index=0)
  >>> values = adapters.Part(rule=adapters.LoRA("attention/qkv", rank=4, name="v"), index=2)

  It goes where its rule goes, under the name of it. Adapters on other parts of the same layer need
  other names.

  Attributes:
    rule: what is put on the part.
    index: of the part, from 0.
    count: of the parts.
  """

  rule: lora.LoRA = dataclasses.field(default_factory=lora.LoRA)
  index: int = 0
  count: int = 3

  constants: ClassVar[frozenset[str]] = lora.LoRA.constants
  merges: ClassVar[bool] = True

  def __post_init__(self) -> None:
    if not isinstance(self.rule, lora.LoRA):
      raise ValueError(f"rule is {self.rule!r}; a LoRA or a DoRA can go to a part of a layer")
    if not 0 <= self.index < self.count:
      raise ValueError(f"index is {self.index}; it must be at least 0 and below count={self.count}")
    for field in ("select", "exclude", "name"):
      object.__setattr__(self, field, getattr(self.rule, field))
    super().__post_init__()

  @property
  def dropout(self) -> float:
    """That of the rule."""
    return self.rule.dropout

  def takes(self, target: rule_lib.Target) -> bool:
    """What its rule takes."""
    return self.rule.takes(target)

  def check(self, targets: list[rule_lib.Target]) -> None:
    """The parts must be equal, and the rule must fit."""
    for target in targets:
      geometry = target.geometry
      assert geometry is not None
      last = len(geometry.shape) - 1
      plain = geometry.outputs == (last,) and not geometry.batch and geometry.groups == 1
      if not plain or geometry.shape[last] % self.count:
        raise ValueError(
          f"{self.name} at {target.path}: its kernel is {geometry.shape}; parts are those of one "
          f"last axis of outputs that {self.count} divides"
        )
    self.rule.check([self.of(target) for target in targets])

  def of(self, target: rule_lib.Target) -> rule_lib.Target:
    """The part of a layer as a layer of its own."""
    geometry = target.geometry
    assert geometry is not None
    start, end = self.outputs(target)
    shape = (*geometry.shape[:-1], end - start)
    return dataclasses.replace(target, geometry=dataclasses.replace(geometry, shape=shape))

  def outputs(self, target: rule_lib.Target) -> tuple[int, int]:
    """First output of the part and the one after its last."""
    assert target.geometry is not None
    size = target.geometry.shape[-1] // self.count
    return self.index * size, (self.index + 1) * size

  def init(self, target: rule_lib.Target, key: jax.Array) -> dict[str, jax.Array]:
    """Those of the rule for the part."""
    return self.rule.init(self.of(target), key)

  def __call__(self, target: rule_lib.Target, leaves: rule_lib.Leaves, call: rule_lib.Call) -> Any:
    """The layer's result with the part's outputs replaced."""
    y = call.proceed(call.x)
    start, end = self.outputs(target)

    def cut(values: Any) -> Any:
      return None if values is None else values[..., start:end]

    own = dataclasses.replace(
      call, proceed=lambda x: cut(y), kernel=cut(call.kernel), bias=cut(call.bias),
      gain=cut(call.gain),
    )  # fmt: skip
    new = self.rule(self.of(target), leaves, own)
    return jnp.concatenate([y[..., :start], new, y[..., end:]], axis=-1)

  def can_merge(self, target: rule_lib.Target) -> bool:
    """Whether the rule can."""
    return self.rule.can_merge(target)

  def merge(self, target: rule_lib.Target, leaves: rule_lib.Leaves, own: rule_lib.Leaves) -> dict:
    """The rule's, for the part."""
    return self._changed(self.rule.merge, target, leaves, own)

  def unmerge(self, target: rule_lib.Target, leaves: rule_lib.Leaves, own: rule_lib.Leaves) -> dict:
    """The rule's, for the part."""
    return self._changed(self.rule.unmerge, target, leaves, own)

  def _changed(
    self, change: Callable[..., dict], target: rule_lib.Target, leaves: rule_lib.Leaves,
    own: rule_lib.Leaves,
  ) -> dict:  # fmt: skip
    start, end = self.outputs(target)
    kind = layer_lib.kind_of(target.module)
    assert kind is not None
    name = kind.kernel
    new = change(self.of(target), leaves, {**own, name: own[name][..., start:end]})
    return {name: jnp.asarray(own[name]).at[..., start:end].set(new[name])}
