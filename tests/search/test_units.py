"""Candidates and what sets of them cost."""

import pytest

from subtune_jax import models
from subtune_jax.search import cost, units
from tests.search import tables

BLOCKS = ("stem", "block1/unit1", "block1/unit2", "block2/unit1")


def test_blocks_and_stages():
  assert [u.name for u in units.parse("blocks", BLOCKS)] == list(BLOCKS)
  stages = units.parse("stages", BLOCKS)
  assert [(u.name, u.blocks) for u in stages] == [
    ("stem", ("stem",)), ("block1", BLOCKS[1:3]), ("block2", ("block2/unit1",))
  ]  # fmt: skip


def test_named_groups():
  made = units.parse("late: block2/unit1; stem block1/unit1", BLOCKS)
  assert [(u.name, u.blocks) for u in made] == [
    ("late", ("block2/unit1",)), ("stem+block1/unit1", ("stem", "block1/unit1"))
  ]  # fmt: skip


def test_runs_of_neighbours():
  assert [(u.name, u.blocks) for u in units.parse("3", BLOCKS)] == [
    ("stem", BLOCKS[:1]), ("block1/unit1..block1/unit2", BLOCKS[1:3]), ("block2/unit1", BLOCKS[3:])
  ]  # fmt: skip
  assert [len(u.blocks) for u in units.parse("5", [f"b{i}" for i in range(14)])] == [3, 3, 2, 3, 3]
  assert [u.name for u in units.parse("4", BLOCKS)] == list(BLOCKS)


@pytest.mark.parametrize(
  ("spec", "message"),
  [("layers", "blocks"), ("5", "'5': this network has 4 blocks; give 1 to 4"),
   ("0", "'0'"), ("a: block7", "block7"), ("a:", "no block"),
   ("a: stem; b: stem", "'a' and 'b'"), ("a: stem; a: block1/unit1", "each name once")],
)  # fmt: skip
def test_bad_units(spec, message):
  with pytest.raises(ValueError, match=message):
    units.Network(
      units.parse(spec, BLOCKS), block_names=BLOCKS, block_params=dict.fromkeys(BLOCKS, 1),
      head_params=1, block_macs=dict.fromkeys(BLOCKS, 1),
    )  # fmt: skip


def test_resnet50_costs_are_those_of_the_analysis():
  """Parameters of a block, and the share of the forward pass before it (224 px)."""
  network = units.network(models.create("resnet50", 1000), "blocks")
  ninth, fourteenth = network.names[9], network.names[14]  # the stem is the first
  assert network.unit_params(network.names[1]) == 75_008
  assert network.unit_params(fourteenth) == 6_039_552
  before = [1 - network.fork_macs((name,)) / network.total_macs for name in (ninth, fourteenth)]
  assert before == pytest.approx([0.535, 0.802], abs=0.001)


def test_fork_of_no_unit_is_the_head():
  network = tables.network()
  assert network.fork_macs(()) == 0
  assert network.fork_macs(("c",)) == 2
  assert network.fork_macs(("a", "d")) == 4


def test_multiply_adds_of_a_training_by_hand():
  """4 blocks of 1: set b+d on 10 images, 2 epochs, 5 held out.

  Forward from b: 3. Weight gradients: 2. Gradients of inputs of c and d: 2.
  """
  network = tables.network()
  options = {"num_train": 10, "num_held_out": 5, "epochs": 2}
  shared = cost.training_macs(network, ("b", "d"), **options, shared_prefix=True)
  assert shared == 2 * 10 * (3 + 2 + 2) + 5 * 3
  plain = cost.training_macs(network, ("b", "d"), **options, shared_prefix=False)
  assert plain == 2 * 10 * (4 + 2 + 2) + 5 * 4
  assert cost.training_macs(network, (), **options, shared_prefix=False) == 2 * 10 * 4 + 5 * 4


def test_an_unknown_unit_names_the_nearest():
  with pytest.raises(ValueError, match="block14"):
    tables.network(("block13", "block14")).ordered(("blok14",))
