"""Parts of the training split: nested, whole groups, and recorded by the run."""

import io
import json

import numpy as np
import pytest

from subtune_jax import data
from subtune_jax.runner import examples
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.studies.compare import run as compare


def make_config(num_train: int, **fields):
  config = compare_config.default()
  config.data.ood = ()
  config.data.image_size = 32
  config.data.num_train = num_train
  config.data.update(fields)
  return config


def load(*arguments, **fields):
  return examples.load_data(make_config(*arguments, **fields))


def test_sizes_nest_and_groups_stay_whole():
  full = data.load("emoji_domains/noto", "train", 32)
  before = np.array([], np.int64)
  for size in (50, 100, 300, len(full)):
    train, validation, trainval, indices = load(size)
    assert trainval is None
    assert set(before) < set(indices)
    assert size - 20 <= len(indices) <= size  # the last group may not fit
    np.testing.assert_array_equal(train.ids, full.ids[indices])
    rest = np.setdiff1d(np.arange(len(full)), indices)
    assert not set(full.groups[indices]) & set(full.groups[rest])
    before = indices
  assert len(validation) == 174


def test_zero_is_all_and_other_seeds_give_other_subsets():
  train, _, _, indices = load(0)
  assert indices is None
  assert len(train) == 652
  assert set(load(50)[3]) != set(load(50, subset_seed=1)[3])


def test_every_class_is_in_proportion():
  full, train = load(0)[0], load(300)[0]
  counts = np.bincount(full.labels)
  share = np.bincount(train.labels, minlength=len(counts)) / counts
  num_groups = np.array([len(set(full.groups[full.labels == c])) for c in range(len(counts))])
  many = share[num_groups >= 10]  # few groups are taken in large steps
  assert len(many) > 10
  assert 0.4 < many.min() <= many.max() < 0.55  # 300 of 652 are 0.46


def test_training_again_uses_the_subset_and_all_validation_images():
  train, validation, trainval, _ = load(50, retrain=True)
  np.testing.assert_array_equal(trainval.ids, np.concatenate([train.ids, validation.ids]))


@pytest.mark.parametrize("number", [-1, 653])
def test_a_number_out_of_range_says_what_is_allowed(number):
  with pytest.raises(ValueError, match=rf"data.num_train is {number}; .*652 training images: give"):
    load(number)


@pytest.mark.slow
def test_the_record_has_the_indices(tmp_path):
  config = make_config(60)
  config.methods, config.seeds, config.lp.l2 = ("lp",), (0,), (0.1,)
  config.tensorboard, config.data.image_size = False, 16
  record = compare.run(config, tmp_path / "run", stream=io.StringIO())
  written = json.loads((tmp_path / "run" / "results.json").read_text())
  indices = load(60)[3].tolist()
  assert record["data"]["train_indices"] == written["data"]["train_indices"] == indices
  assert written["data"]["num_train"] == len(indices)
