"""Candidates of a search for the ranks of LoRA: each unit at each of some ranks.

A set has a unit once at most, at one rank, so that a set is a `rank_pattern`. The paper's way is
one rank for all (SubTuning, arXiv 2302.06354: ranks 1 to 512, by cross-validation); greedy raises
the rank of one unit a step, from none to the next of the ranks.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from subtune_jax import adapters, methods
from subtune_jax.search import scores
from subtune_jax.search import units as units_lib

_LORA = methods.DECLARED["lora"]


class Ranks(units_lib.Network):
  """Units at ranks, named "block14=4", and what sets of them cost.

  Args:
    base: the units; those without a layer that takes LoRA are left out.
    ranks: at least one, each once.
    block_params: parameters of LoRA at rank 1 in each block; at rank r they are r times as many.

  Raises:
    ValueError: no rank, one below 1 or twice, or no unit that takes LoRA.
  """

  def __init__(
    self, base: units_lib.Network, ranks: Sequence[int], block_params: Mapping[str, int]
  ):
    check("ranks are", ranks)
    blocks = {
      unit.name: tuple(block for block in unit.blocks if block_params.get(block))
      for unit in base.units.values()
    }
    kept = [units_lib.Unit(name, own) for name, own in blocks.items() if own]
    super().__init__(
      kept, block_names=base.block_names, block_params=block_params, head_params=base.head_params,
      block_macs=base._macs, head_macs=base.head_macs,
    )  # fmt: skip
    self.ranks = tuple(sorted(ranks))
    self._places = {f"{name}={rank}": (name, rank) for name in self.units for rank in self.ranks}
    self.units = {
      name: units_lib.Unit(name, self.units[unit].blocks)
      for name, (unit, _) in self._places.items()
    }
    self.names = tuple(self.units)

  @property
  def everything(self) -> scores.Units:
    """Every unit at the highest rank."""
    return self.uniform()[-1]

  @property
  def references(self) -> list[scores.Units]:
    """The head alone."""
    return [()]

  def uniform(self) -> list[scores.Units]:
    """Every unit at one rank, for each of the ranks."""
    return [
      tuple(name for name, (_, own) in self._places.items() if own == rank) for rank in self.ranks
    ]

  def larger(self, units: scores.Units) -> list[scores.Units]:
    """The sets in which one unit has the next higher rank."""
    return self._neighbours(units, 1)

  def smaller(self, units: scores.Units) -> list[scores.Units]:
    """The sets in which one unit has the next lower rank, the lowest one none."""
    return self._neighbours(units, -1)

  def _neighbours(self, units: scores.Units, step: int) -> list[scores.Units]:
    steps = (None, *self.ranks)
    own = dict(self._places[name] for name in units)
    found = []
    for unit in dict.fromkeys(unit for unit, _ in self._places.values()):
      place = steps.index(own.get(unit)) + step
      if 0 <= place < len(steps):
        changed = {**own, unit: steps[place]}
        found.append(tuple(n for n, (u, rank) in self._places.items() if changed.get(u) == rank))
    return found

  def trained_params(self, units: scores.Units) -> int:
    """Parameters of the products and of the head."""
    return self.head_params + sum(map(self.unit_params, units))

  def unit_params(self, name: str) -> int:
    """Parameters of one unit at its rank."""
    return self._places[name][1] * super().unit_params(name)

  def pattern(self, units: scores.Units) -> dict[str, int]:
    """Block -> rank, in the order of the network."""
    ranks = {b: self._places[name][1] for name in units for b in self.units[name].blocks}
    return {block: ranks[block] for block in self.block_names if block in ranks}


@dataclasses.dataclass(frozen=True)
class Adapters:
  """How a set becomes LoRA on a network.

  Attributes:
    network: the candidates.
    options: of the method `lora`, as its section of a config has them; `where` and `rank_pattern`
      are the set's.
  """

  network: Ranks
  options: Mapping[str, Any]

  def of(self, units: scores.Units) -> dict[str, Any]:
    """The options of the method `lora` that stand for a set."""
    return options(self.options, self.network.pattern(units))

  def put(self, model: Any, variables: Any, units: scores.Units) -> tuple[Any, Any]:
    """(the network with fresh adapters, its variables), as a comparison makes them."""
    assert _LORA.prepare is not None
    return _LORA.prepare(model, variables, jax.random.key(0), self.of(units))


def options(section: Mapping[str, Any], pattern: Mapping[str, int]) -> dict[str, Any]:
  """The options of the method `lora` for ranks of blocks; how its head starts is not among them."""
  where = tuple(f"/{block}" for block in pattern)
  text = ",".join(f"/{block}={rank}" for block, rank in pattern.items())
  own = {**methods.options_of(_LORA, section), "where": where, "rank_pattern": text}
  del own["probe_first"]
  return own


def network(model: Any, spec: str, ranks: Sequence[int]) -> Ranks:
  """The candidates of a backbone of `subtune_jax.models`.

  Args:
    model: the backbone.
    spec: of its units, see `units.parse`.
    ranks: see `Ranks`.
  """
  size = model.image_size
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  prepare = _LORA.prepare
  assert prepare is not None
  one = {**methods.options_of(_LORA, None), "rank": 1}

  def made(key: jax.Array) -> Any:
    return prepare(model, model.init(key, jnp.zeros(images.shape)), key, one)[1]["params"]

  _, tree = adapters.split(jax.eval_shape(made, jax.random.key(0)))
  params = dict.fromkeys(model.block_names, 0)
  for path, own in tree.items():
    block = next(name for name in model.block_names if f"{path}/".startswith(f"{name}/"))
    for leaves in own.values():
      params[block] += sum(x.size for leaf, x in leaves.items() if leaf not in adapters.CONSTANTS)
  return Ranks(units_lib.network(model, spec), ranks, params)


def check(what: str, ranks: Sequence[Any]) -> None:
  """Raises ValueError, which begins with `what`, unless ranks are integers from 1 on, each once."""
  if not ranks or not all(type(rank) is int and rank >= 1 for rank in ranks):
    raise ValueError(f"{what} {tuple(ranks)}; give integers of at least 1")
  if len(set(ranks)) < len(ranks):
    raise ValueError(f"{what} {tuple(ranks)}; give each rank once")
