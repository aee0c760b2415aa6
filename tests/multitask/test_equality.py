"""Every task answers as its own network does, whatever other tasks are there."""

import dataclasses

import numpy as np
import pytest

from subtune_jax import multitask
from subtune_jax.multitask import plan as plan_lib
from tests.multitask import made

FAMILIES = {"resnet": made.RESNET, "vit": made.VIT, "lite": made.LITE}
CASES = [("resnet", 0), ("vit", 0), ("lite", 0)]


@pytest.fixture(scope="module")
def bases():
  return {name: made.backbone(network) for name, network in FAMILIES.items()}


def random_tasks(base, rng, count, most=3):
  """Tasks with random sets of tuned blocks, some of which they share."""
  blocks = base.model.block_names
  sets = [rng.choice(blocks, rng.integers(0, most + 1), replace=False) for _ in range(count)]
  return {
    f"t{i}": made.task(base, own, seed=int(rng.integers(3)), num_classes=2 + i)
    for i, own in enumerate(sets)
  }  # fmt: skip


@pytest.mark.parametrize(("family", "seed"), CASES)
def test_random_tasks_in_any_order_are_their_own_networks(bases, family, seed):
  rng = np.random.default_rng(seed)
  tasks = random_tasks(bases[family], rng, count=5)
  images = made.images()
  wanted = {name: made.own_answers(own, images) for name, own in tasks.items()}
  order = rng.permutation(list(tasks))
  network = multitask.MultiTask({name: tasks[name] for name in order[:-1]})
  network = network.added(order[-1], tasks[order[-1]])
  found = network.apply(images)
  assert list(found) == list(order)
  for name, answers in found.items():
    np.testing.assert_array_equal(answers.logits, wanted[name])


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_random_tasks_that_come_and_go_are_their_own_networks(bases, family, count):
  """From none to all blocks tuned; one by one in any order, some asked for, one removed."""
  base, images = bases[family], made.images(2)
  for seed in range(2):
    rng = np.random.default_rng(100 * count + seed)
    tasks = random_tasks(base, rng, count, most=len(base.model.block_names))
    wanted = {name: made.own_answers(own, images) for name, own in tasks.items()}
    first, *others = rng.permutation(list(tasks))
    network = multitask.MultiTask({first: tasks[first]})
    for name in others:
      network = network.added(name, tasks[name])
    some = list(rng.choice(list(tasks), rng.integers(1, count + 1), replace=False))
    found = [network.apply(images), network.apply(images, some)]
    assert set(found[1]) == set(some)
    if others:
      found.append(network.removed(first).apply(images))
      assert set(found[2]) == set(others)
    for answers in found:
      for name, own in answers.items():
        np.testing.assert_array_equal(own.logits, wanted[name])


UNITS = ("a", "b", "c", "d", plan_lib.HEAD)


def random_digests(rng, count):
  """Task -> unit -> (digest, whether it is tuned); of few digests, so that tasks share some."""

  def one(name, unit):
    own = f"{unit}{rng.integers(3)}" if rng.random() < 0.4 else f"{unit}0"
    return (f"head of {name}", True) if unit == plan_lib.HEAD else (own, own != f"{unit}0")

  return {name: {unit: one(name, unit) for unit in UNITS} for name in map(str, range(count))}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_tasks_share_a_run_where_all_weights_so_far_are_equal(count):
  rng = np.random.default_rng(count)
  for _ in range(50):
    tasks = random_digests(rng, count)
    order = list(rng.permutation(list(tasks)))
    plan = plan_lib.build(UNITS, {name: tasks[name] for name in order})
    so_far = {
      name: [tuple(own[u][0] for u in UNITS[: i + 1]) for i in range(len(UNITS))]
      for name, own in tasks.items()
    }
    for name, own in so_far.items():
      path = [plan.nodes[i] for i in plan.path(name)]
      assert tuple(node.weights for node in path) == own[-1]
      for i, node in enumerate(path):
        assert set(node.tasks) == {other for other in tasks if so_far[other][i] == own[i]}
    assert len(plan.nodes) == len({prefix for own in so_far.values() for prefix in own})
    some = [name for name in order if rng.random() < 0.5] or order[:1]
    fewer = plan_lib.build(UNITS, {name: tasks[name] for name in some})
    assert sorted(shape(plan.only(some))) == sorted(shape(fewer))


def shape(plan):
  """What runs, without the places in the list: a unit, its weights, those before, its tasks."""

  def before(at):
    return () if at is None else (*before(plan.nodes[at].parent), plan.nodes[at].weights)

  return [(node.unit, node.weights, before(node.parent), node.tasks) for node in plan.nodes]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["resnet", "vit", "lite0", "convnext"])
def test_every_fork_of_every_family(family):
  network = {**FAMILIES, "lite0": made.LITE0, "convnext": made.CONVNEXT}[family]
  base = made.backbone(network)
  images = made.images(2)
  for block in base.model.block_names:
    tasks = {"probe": made.task(base, (), 1), "fork": made.task(base, (block,), 2)}
    for name, answers in multitask.MultiTask(tasks).apply(images).items():
      np.testing.assert_array_equal(answers.logits, made.own_answers(tasks[name], images))


def test_adding_and_removing_a_task_moves_no_other(bases):
  base = bases["resnet"]
  tasks = {
    "a": made.task(base, ("block2/unit2",), 1),
    "b": made.task(base, (), 2),
    "c": made.task(base, ("stem", "block3/unit1"), 3),
  }
  images = made.images()
  all_ = multitask.MultiTask(tasks)
  before = multitask.MultiTask({"a": tasks["a"]}).apply(images)["a"]
  for after in (all_.apply(images), all_.apply(images, ["a"]), all_.removed("c").apply(images)):
    np.testing.assert_array_equal(after["a"].logits, before.logits)
    np.testing.assert_array_equal(after["a"].features, before.features)


def test_adapters_count_as_tuned():
  network = dataclasses.replace(made.VIT, method="lora")
  base = made.backbone(network)
  tasks = {"probe": made.task(base, (), 1), "lora": made.task(base, ("encoderblock_1",), 2)}
  found = multitask.MultiTask(tasks)
  assert [len(own) for own in found.plan.levels().values()] == [1, 1, 2, 2, 2, 2]
  for name, answers in found.apply(made.images()).items():
    np.testing.assert_array_equal(answers.logits, made.own_answers(tasks[name], made.images()))


def test_features_are_what_the_head_reads(bases):
  own = made.task(bases["resnet"], ("block3/unit1",), 1)
  answers = multitask.MultiTask({"a": own}).apply(made.images())["a"]
  head = own.network.variables["params"]["head"]
  found = np.asarray(answers.features) @ head["kernel"] + head["bias"]
  np.testing.assert_allclose(found, answers.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "form"), [("resnet", "batched"), ("vit", "stacked")])
def test_other_forms_are_equal_to_rounding(bases, family, form):
  base = bases[family]
  names = base.model.block_names
  tasks = {
    "a": made.task(base, (names[2],), 1),
    "b": made.task(base, (names[2],), 2),
    "c": made.task(base, (names[1], names[-1]), 3),
    "d": made.task(base, (), 4),
  }
  images = made.images()
  network = multitask.MultiTask(tasks, forms=dict.fromkeys(names, form))
  for name, answers in network.apply(images).items():
    wanted = made.own_answers(tasks[name], images)
    np.testing.assert_allclose(answers.logits, wanted, atol=2e-5 * np.abs(wanted).max())


def flops(network, tasks=None):
  run, weights = network.compiled(tasks)
  return run.lower(weights, made.images(1)).compile().cost_analysis()["flops"]


def test_a_task_that_is_not_asked_for_costs_nothing(bases):
  base = bases["resnet"]
  tasks = {"a": made.task(base, ("block3/unit1",), 1), "b": made.task(base, ("stem",), 2)}
  both, alone = multitask.MultiTask(tasks), multitask.MultiTask({"a": tasks["a"]})
  assert flops(both, ["a"]) == flops(alone)
  assert flops(both) > 1.9 * flops(alone)
  shared = both.removed("b").added("c", made.task(base, ("block3/unit1",), 3))
  assert flops(shared) < 1.5 * flops(alone)


def test_networks_of_one_shape_share_a_program(bases):
  base = bases["resnet"]
  a, b = (
    multitask.MultiTask({name: made.task(base, ("block3/unit1",), seed)})
    for name, seed in (("a", 1), ("b", 2))
  )
  assert a.compiled()[0] is b.compiled()[0]
  assert not np.array_equal(a.apply(made.images())["a"].logits, b.apply(made.images())["b"].logits)
