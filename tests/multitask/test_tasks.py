"""Tasks from folders, and what does not belong together."""

import dataclasses

import numpy as np
import pytest

from subtune_jax import multitask
from subtune_jax.data import preprocess
from tests.multitask import made

LAST, BLOCK = "block3/unit1", "block2/unit1"


@pytest.fixture(scope="module")
def base():
  return made.backbone(made.RESNET)


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory):
  root = tmp_path_factory.mktemp("tasks")
  sets = {"probe": (), "last": (LAST,), "two": (BLOCK, LAST)}
  return {
    name: made.write(root / name, made.RESNET, base, blocks, seed, num_classes=2 + seed)
    for seed, (name, blocks) in enumerate(sets.items())
  }


def test_model_folders_answer_as_they_do_alone(folders):
  network = multitask.MultiTask(folders)
  images = made.images(5)
  for name, found in network.predict(images, batch_size=4, calibrate=True).items():
    own = network.tasks[name].network.with_batch_size(4)
    wanted = own.predict(images, calibrate=True)
    # Classifiers split a batch over the four simulated devices: equal but for rounding.
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-5)
    np.testing.assert_array_equal(found.labels, wanted.labels)
  assert network.tasks["two"].tuned_blocks() == (BLOCK, LAST)


def test_exports_need_their_backbone_and_are_the_same(folders, base):
  exports = {name: path.parent / "export" for name, path in folders.items()}
  with pytest.raises(multitask.TaskError, match="give the backbone"):
    multitask.MultiTask(exports)
  images = made.images()
  found = multitask.MultiTask(exports, base).apply(images)
  for name, wanted in multitask.MultiTask(folders).apply(images).items():
    np.testing.assert_array_equal(found[name].logits, wanted.logits)


def test_frozen_leaves_are_in_memory_once(folders):
  network = multitask.MultiTask(folders)
  stems = [own.network.variables["params"]["stem"]["conv1"]["kernel"]
           for own in network.tasks.values()]  # fmt: skip
  assert stems[0] is stems[1] is stems[2]
  alone = multitask.MultiTask({"last": folders["last"]})
  assert network.num_bytes < 2.5 * alone.num_bytes


def other(base, **changes):
  return dataclasses.replace(made.task(base, (LAST,), 1), **changes)


def changed_leaf(base, path):
  """A task with one number of a leaf changed behind training's back."""
  own = made.task(base, (LAST,), 1)
  variables = made.moved(own.network.variables, lambda name: name == path, 0, by=1e-6)
  return dataclasses.replace(own, network=dataclasses.replace(own.network, variables=variables))


def of_network(base, **changes):
  own = made.task(base, (LAST,), 1)
  return dataclasses.replace(own, network=dataclasses.replace(own.network, **changes))


MISMATCHES = {
  "digest": lambda base: made.task(made.backbone(made.RESNET, seed=1), (LAST,), 1),
  "image_size 64": lambda base: of_network(base, image_size=64),
  "preprocessing.mean": lambda base: of_network(
    base, preprocessing=preprocess.Preprocessing((1.0,), (2.0,))
  ),
  "interpolation": lambda base: of_network(base, interpolation="nearest"),
  "family": lambda base: made.task(made.backbone(made.VIT), (), 1),
  "the network's dtype": lambda base: of_network(
    base, model=base.model.clone(dtype="bfloat16", num_classes=3)
  ),
  "frozen parameter params/stem/conv1/kernel": lambda base: changed_leaf(
    base, "params/stem/conv1/kernel"
  ),
  "frozen running statistic batch_stats/block1/unit1/conv1/bn/mean": lambda base: changed_leaf(
    base, "batch_stats/block1/unit1/conv1/bn/mean"
  ),
}


@pytest.mark.parametrize("what", MISMATCHES)
def test_a_task_that_does_not_belong_is_one_error(base, what):
  odd = MISMATCHES[what](base)
  fits = made.task(base, (BLOCK,), 2)
  multitask.MultiTask({"fits": fits, "too": made.task(base, (), 3)}, base)
  for given in ({"fits": fits, "odd": odd}, {"odd": odd, "fits": fits}):
    with pytest.raises(multitask.TaskError) as error:
      multitask.MultiTask(given)
    assert what in str(error.value).replace("32", "64")
    assert "\n" not in str(error.value)
  with pytest.raises(multitask.TaskError, match="'odd'"):
    multitask.MultiTask({"odd": odd}, base)


def test_one_task_whose_statistic_was_changed_is_found_by_the_digest(base):
  odd = changed_leaf(base, "batch_stats/block1/unit1/conv1/bn/mean")
  fits = made.task(base, ("block1/unit1",), 2)  # its own, so that nothing is compared leaf by leaf
  with pytest.raises(multitask.TaskError, match="a frozen leaf was changed"):
    multitask.MultiTask({"fits": fits, "odd": odd})


def test_folders_that_hold_no_task(folders, tmp_path):
  import shutil

  copy = tmp_path / "best"
  shutil.copytree(folders["last"], copy)
  shutil.rmtree(copy / "task")
  with pytest.raises(multitask.TaskError, match="has no task/"):
    multitask.MultiTask({"a": copy})
  shutil.copytree(folders["two"] / "task", copy / "task")
  with pytest.raises(multitask.TaskError, match="another training"):
    multitask.MultiTask({"a": copy})
  with pytest.raises(ValueError, match="there is no folder"):
    multitask.MultiTask({"a": tmp_path / "nothing"})
  with pytest.raises(multitask.TaskError, match="a run's folder"):
    multitask.MultiTask({"a": tmp_path})


def test_names_and_shapes_are_checked(base):
  network = multitask.MultiTask({"noto": made.task(base, (), 1)})
  for call in (
    lambda: network.apply(made.images(), ["nota"]),
    lambda: network.removed("nota"),
  ):
    with pytest.raises(ValueError, match="Did you mean 'noto'"):
      call()
  with pytest.raises(ValueError, match="is a string"):
    network.apply(made.images(), "noto")
  with pytest.raises(ValueError, match="there is a task 'noto'"):
    network.added("noto", made.task(base, (), 1))
  with pytest.raises(ValueError, match=r"images have shape \(1, 16, 16, 3\)"):
    network.apply(np.zeros((1, 16, 16, 3), np.uint8))
  with pytest.raises(ValueError, match="Unknown form 'fused'"):
    network.with_forms({"stem": "fused"})
  with pytest.raises(multitask.TaskError, match="there is no task"):
    network.removed("noto")
