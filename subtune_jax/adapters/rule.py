"""What an adapter is: where it goes, how its leaves start, what they do, how they merge away."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from subtune_jax import masks
from subtune_jax.adapters import layer as layer_lib
from subtune_jax.masks import selection
from subtune_jax.masks import tree as tree_lib

Leaves = Mapping[str, jax.Array]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Target:
  """A module that adapters can go to.

  Attributes:
    path: of the module, "encoder/block1/conv".
    module: its class.
    geometry: of a linear layer's kernel.
    refused: why a linear layer takes no adapter; "" if it does.
    leaves: its own parameters, (name, shape without stacked axes).
    stack: leading axes along which such modules are stacked (`nn.scan`).
    x: shape of its first argument; None where it is not called with an array.
    y: of its result, likewise.
  """

  path: str
  module: type
  geometry: layer_lib.Geometry | None = None
  refused: str = ""
  leaves: tuple[tuple[str, Shape], ...] = ()
  stack: Shape = ()
  x: Shape | None = None
  y: Shape | None = None

  def has(self, name: str) -> bool:
    """Whether the module has a parameter of this name."""
    return name in dict(self.leaves)

  @property
  def layer(self) -> layer_lib.Geometry:
    """The geometry, at a linear layer."""
    assert self.geometry is not None
    return self.geometry

  @property
  def kind(self) -> layer_lib.Kind:
    """That of its class, at a linear layer."""
    kind = layer_lib.kind_of(self.module)
    assert kind is not None
    return kind

  @property
  def reads(self) -> Shape:
    """Shape of its first argument, where it is called with an array."""
    assert self.x is not None
    return self.x

  @property
  def gives(self) -> Shape:
    """Shape of its result, where it is an array."""
    assert self.y is not None
    return self.y

  @property
  def bias(self) -> str | None:
    """Name of a linear layer's bias, if it has one."""
    kind = layer_lib.kind_of(self.module)
    return kind.bias if kind and self.has(kind.bias) else None


@dataclasses.dataclass
class Call:
  """A call of an adapted module.

  Attributes:
    x: its first argument.
    proceed: x -> what the module, with the adapters before this one, makes of it.
    run: (x, kernel) -> the layer's linear map with another kernel, without bias.
    kernel: of a linear layer.
    bias: of a linear layer, where it adds one.
    gain: the layer multiplies its outputs by this; None: it does not.
    key: () -> a key for dropout; None where there is no dropout.
    affine: (scale, shift) -> what a normalisation returns with them.
  """

  x: Any
  proceed: Callable[[Any], Any]
  run: Callable[[Any, jax.Array], jax.Array] = lambda x, kernel: x  # of a linear layer only
  kernel: Any = None
  bias: jax.Array | None = None
  gain: jax.Array | None = None
  key: Callable[[], jax.Array] | None = None
  affine: Callable[[jax.Array, jax.Array], Any] | None = None

  def gained(self, y: jax.Array) -> jax.Array:
    """An addition to the layer's outputs, times its gain."""
    return y if self.gain is None else y * along(self.gain, y)


@dataclasses.dataclass(frozen=True)
class Rule:
  """One kind of adapter and where it goes.

  Attributes:
    select: a selector of modules, as those of `masks`.
    exclude: of modules that are left out; None: none.
    name: under which its leaves are kept; two rules of one name may not meet at a module.
  """

  select: masks.Selector = "*"
  exclude: masks.Selector | None = None
  name: str = ""

  # Leaves that are never trained.
  constants: ClassVar[frozenset[str]] = frozenset()
  # Whether a selected module stands for itself and not for what lies in it.
  whole: ClassVar[bool] = False
  # Whether it can be merged into the parameters of the network.
  merges: ClassVar[bool] = False

  def __post_init__(self) -> None:
    for field in ("select", "exclude"):
      value = getattr(self, field)
      if isinstance(value, list | set):
        object.__setattr__(self, field, tuple(value))
    if not self.name or "/" in self.name:
      raise ValueError(f"name is {self.name!r}; a name without '/' is needed")

  @property
  def leafless(self) -> bool:
    """Whether it has no leaf of its own at its module."""
    return False

  def takes(self, target: Target) -> bool:
    """Whether such adapters go to such modules at all."""
    raise NotImplementedError

  def place(self, targets: list[Target]) -> list[tuple[Target, "Rule"]]:
    """The chosen modules, in the order in which they run, each with the adapter that it gets."""
    return [(target, self) for target in targets]

  def init(self, target: Target, key: jax.Array) -> dict[str, jax.Array]:
    """Leaves of one module (of one layer, where layers are stacked)."""
    raise NotImplementedError

  def __call__(self, target: Target, leaves: Leaves, call: Call) -> Any:
    """What the module returns with the adapter."""
    raise NotImplementedError

  def merge(self, target: Target, leaves: Leaves, own: Leaves) -> dict[str, jax.Array]:
    """The module's parameters with the adapter in them (of one layer)."""
    raise ValueError(f"{self.name} at {target.path} merges into no parameter; run it beside them")

  def unmerge(self, target: Target, leaves: Leaves, own: Leaves) -> dict[str, jax.Array]:
    """The inverse of `merge`."""
    raise ValueError(f"{self.name} at {target.path} cannot be taken out; keep the base parameters")

  def can_merge(self, target: Target) -> bool:
    """Whether `merge` is exact at a module."""
    return self.merges and target.geometry is not None and target.geometry.mergeable

  def check(self, targets: list[Target]) -> None:
    """Raises ValueError for fields that do not go with the modules that were chosen."""
    del targets


def matched(targets: Sequence[Target], selector: masks.Selector) -> list[Target]:
  """The targets that a selector picks. Raises ValueError, with the nearest names, if none."""
  rows = [(target.path, target) for target in targets]
  return [t for t, own in zip(targets, selection.match(rows, selector), strict=True) if own]


def chosen(rule: "Rule", targets: Sequence[Target]) -> list[Target]:
  """The modules that a rule's adapters go to.

  Raises:
    ValueError: the selectors match nothing, or nothing that such adapters go to.
  """
  found = matched(targets, rule.select)
  if rule.exclude is not None:
    left_out = {target.path for target in matched(targets, rule.exclude)}
    found = [target for target in found if target.path not in left_out]
  if rule.whole:
    paths = {target.path for target in found}
    found = [own for own in found if not any(above in paths for above in _above(own.path))]
  taken = [target for target in found if rule.takes(target)]
  refused = [f"{target.path} ({target.refused})" for target in taken if target.refused]
  if refused:
    raise ValueError(f"{rule.name} cannot go to {tree_lib.shorten(refused)}; exclude them")
  if not taken:
    fits = tree_lib.shorten([own.path for own in targets if rule.takes(own)]) or "none here"
    raise ValueError(
      f"{rule.name} goes to none of the {len(found)} modules that {rule.select!r} selects; it "
      f"could go to {fits}"
    )
  rule.check(taken)
  return taken


def _above(path: str) -> list[str]:
  parts = path.split("/")
  return ["/".join(parts[:i]) for i in range(1, len(parts))]


def pattern_value(path: str, patterns: tuple[tuple[masks.Selector, Any], ...], default: Any) -> Any:
  """The value of the first pattern that matches a module's path."""
  for pattern, value in patterns:
    if isinstance(pattern, str) and selection.match_end(path.split("/"), selection.parse(pattern)):
      return value
    if callable(pattern) and pattern(path, None):
      return value
  return default


def as_pairs(value: Any) -> tuple[tuple[Any, Any], ...]:
  """A mapping as pairs."""
  return tuple(value.items()) if isinstance(value, Mapping) else tuple(map(tuple, value))


def along(values: jax.Array, y: jax.Array) -> jax.Array:
  """Values of the last axes of `y` in its dtype and number of axes."""
  return values.reshape((1,) * (y.ndim - values.ndim) + values.shape).astype(y.dtype)


def uniform_fan_in(key: jax.Array, shape: Shape, fan_in: int) -> jax.Array:
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's start of linear layers and convolutions."""
  bound = fan_in**-0.5
  return jax.random.uniform(key, shape, jnp.float32, -bound, bound)
