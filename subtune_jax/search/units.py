"""What a search chooses from: blocks, stages or any named groups of blocks, and what sets cost."""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from typing import Any

from subtune_jax.data import choices
from subtune_jax.models import flops
from subtune_jax.search import scores

KINDS = ("blocks", "stages")


@dataclasses.dataclass(frozen=True)
class Unit:
  """A candidate.

  Attributes:
    name: as reports show it.
    blocks: the blocks of the network that it holds, input to output.
  """

  name: str
  blocks: tuple[str, ...]


class Network:
  """The candidates of one network, in its order, and the cost of sets of them.

  Args:
    units: disjoint, in any order.
    block_names: of the network, input to output.
    block_params: parameters of each block.
    head_params: parameters of the head, which is always trained.
    block_macs: multiply-adds of each block for one image.
    head_macs: of the head.

  Raises:
    ValueError: no unit, an unknown block, or a block in two units.
  """

  def __init__(
    self,
    units: Sequence[Unit],
    *,
    block_names: Sequence[str],
    block_params: Mapping[str, int],
    head_params: int,
    block_macs: Mapping[str, int],
    head_macs: int = 0,
  ):
    _check(units, block_names)
    place = {block: i for i, block in enumerate(block_names)}
    ordered = sorted(units, key=lambda unit: place[unit.blocks[0]])
    self.units = {unit.name: unit for unit in ordered}
    self.names = tuple(self.units)
    self.block_names = tuple(block_names)
    self._params, self.head_params = block_params, head_params
    self._macs, self.head_macs = block_macs, head_macs

  def ordered(self, names: Sequence[str]) -> scores.Units:
    """The set as a tuple in the order of the network.

    Raises:
      ValueError: an unknown unit (the error has the nearest ones).
    """
    for name in names:
      choices.check("unit", name, self.names)
    return tuple(name for name in self.names if name in set(names))

  @property
  def everything(self) -> scores.Units:
    """The largest set."""
    return self.names

  @property
  def references(self) -> list[scores.Units]:
    """The sets that all others are laid beside: the head alone, and all units."""
    return [(), self.names]

  def larger(self, units: scores.Units) -> list[scores.Units]:
    """The sets that a step of a search reaches by adding: one unit more."""
    return [self.ordered((*units, name)) for name in self.names if name not in units]

  def smaller(self, units: scores.Units) -> list[scores.Units]:
    """The sets that a step reaches by taking away: one unit less."""
    return [tuple(own for own in units if own != name) for name in units]

  def blocks(self, units: scores.Units) -> tuple[str, ...]:
    """The blocks of a set, input to output."""
    own = {block for name in units for block in self.units[name].blocks}
    return tuple(block for block in self.block_names if block in own)

  def trained_params(self, units: scores.Units) -> int:
    """Parameters that are trained and stored for a task: those of the set and of the head."""
    return self.head_params + sum(self._params[block] for block in self.blocks(units))

  def fork_macs(self, units: scores.Units) -> int:
    """Multiply-adds that one more task adds to the inference of one image.

    The network forks at the first tuned block: what comes before is shared, what comes after runs
    once more, with the same frozen weights (SubTuning, section 4 on multi-task inference).
    """
    blocks = self.blocks(units)
    first = self.block_names.index(blocks[0]) if blocks else len(self.block_names)
    return self.head_macs + sum(self._macs[block] for block in self.block_names[first:])

  def weight_macs(self, blocks: tuple[str, ...]) -> int:
    """Multiply-adds of the weights' gradients of these blocks and the head, for one image."""
    return self.head_macs + sum(self._macs[block] for block in blocks)

  def input_macs(self, blocks: tuple[str, ...]) -> int:
    """Multiply-adds of the gradients that flow back to the first of these blocks, for one image."""
    if not blocks:
      return 0
    first = self.block_names.index(blocks[0])
    return self.head_macs + sum(self._macs[block] for block in self.block_names[first + 1 :])

  def unit_params(self, name: str) -> int:
    """Parameters of one unit."""
    return sum(self._params[block] for block in self.units[name].blocks)

  def unit_macs(self, name: str) -> int:
    """Multiply-adds of one unit's forward pass for one image."""
    return sum(self._macs[block] for block in self.units[name].blocks)

  @property
  def total_macs(self) -> int:
    """Multiply-adds of the whole network for one image."""
    return self.head_macs + sum(self._macs.values())


def _check(units: Sequence[Unit], block_names: Sequence[str]) -> None:
  seen: dict[str, str] = {}
  if not units or len({unit.name for unit in units}) != len(units):
    raise ValueError(f"units are {[u.name for u in units]}; give at least one, each name once")
  for unit in units:
    if not unit.blocks:
      raise ValueError(f"unit {unit.name!r} has no block; blocks: {', '.join(block_names)}")
    for block in unit.blocks:
      choices.check("block", block, block_names)
      if block in seen:
        raise ValueError(f"block {block!r} is in the units {seen[block]!r} and {unit.name!r}")
      seen[block] = unit.name


def parse(spec: str, block_names: Sequence[str]) -> list[Unit]:
  """Candidates from a config.

  Args:
    spec: "blocks" (each block is one), "stages" (blocks whose names share the first component, as
      "block2" of a ResNet; what surgical fine-tuning chooses from), a number of runs of neighbours,
      as equal as can be ("6"), or groups of blocks, as in "early: stem block0; late: block14
      block15". A group without a name is named after its blocks.
    block_names: of the network.

  Raises:
    ValueError: another word, a group without blocks, "stages" of a network without any, or more
      runs than blocks.
  """
  if spec == "blocks":
    return [Unit(name, (name,)) for name in block_names]
  if spec == "stages":
    stages: dict[str, list[str]] = {}
    for name in block_names:
      stages.setdefault(name.partition("/")[0], []).append(name)
    if len(stages) == len(block_names):
      raise ValueError(
        "units is 'stages', and no two blocks of this network share one (blocks: "
        f"{', '.join(block_names)}); give 'blocks', or groups such as "
        f"'early: {' '.join(block_names[:2])}; late: {block_names[-1]}'"
      )
    return [Unit(stage, tuple(blocks)) for stage, blocks in stages.items()]
  if spec.isdecimal():
    return _runs(int(spec), block_names)
  if not any(mark in spec for mark in ":; "):
    choices.check(
      "units", spec, (*KINDS, "6", "groups such as 'early: stem block0; late: block15'")
    )
  units = []
  for group in spec.split(";"):
    name, colon, blocks = group.rpartition(":")
    members = tuple(blocks.split())
    units.append(Unit(name.strip() if colon else "+".join(members), members))
  return units


def _runs(number: int, block_names: Sequence[str]) -> list[Unit]:
  """So many runs of neighbouring blocks, whose lengths differ by one at most."""
  count = len(block_names)
  if not 1 <= number <= count:
    raise ValueError(f"units is '{number}': this network has {count} blocks; give 1 to {count}")
  ends = [round(count * i / number) for i in range(number + 1)]
  runs = [tuple(block_names[a:b]) for a, b in itertools.pairwise(ends)]
  return [Unit("..".join(dict.fromkeys((run[0], run[-1]))), run) for run in runs]


def network(model: Any, spec: str) -> Network:
  """The candidates of a backbone of `subtune_jax.models`.

  Args:
    model: the backbone.
    spec: see `parse`.
  """
  counted = {unit.name: unit for unit in flops.units(model)}
  head = counted.pop("head")
  return Network(
    parse(spec, model.block_names),
    block_names=model.block_names,
    block_params={name: unit.parameters for name, unit in counted.items()},
    head_params=head.parameters,
    block_macs={name: unit.macs for name, unit in counted.items()},
    head_macs=head.macs,
  )
