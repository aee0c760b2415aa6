"""The TFDS builder gives what the reader gives."""

import numpy as np
import pytest

from subtune_jax.data import emoji_domains

pytest.importorskip("tensorflow", reason="the TFDS builder needs tensorflow")
pytest.importorskip("tensorflow_datasets", reason="the TFDS builder needs tensorflow_datasets")

import tensorflow_datasets as tfds

from subtune_jax.data import emoji_domains_tfds


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
  data_dir = tmp_path_factory.mktemp("tfds")
  builder = emoji_domains_tfds.EmojiDomains(config="fluent", data_dir=data_dir)
  builder.download_and_prepare()
  return builder


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_gives_the_readers_arrays_in_the_readers_order(builder, split):
  examples = list(tfds.as_numpy(builder.as_dataset(split=split)))
  data = emoji_domains.load("fluent", split)
  np.testing.assert_array_equal(np.stack([e["image"] for e in examples]), data.images)
  np.testing.assert_array_equal([e["label"] for e in examples], data.labels)
  assert [e["concept"].decode() for e in examples] == data.groups.tolist()
  assert [e["id"].decode() for e in examples] == data.ids.tolist()


def test_class_names_are_the_readers(builder):
  assert tuple(builder.info.features["label"].names) == emoji_domains.class_names()


def test_the_licence_goes_with_the_data(builder):
  attribution = emoji_domains.ATTRIBUTION["fluent"]
  assert attribution in builder.info.description
  assert attribution in builder.info.citation
  assert (builder.data_path / "LICENSE").read_text().strip() == attribution


def test_has_one_config_per_domain_and_is_registered():
  configs = emoji_domains_tfds.EmojiDomains.builder_configs
  assert tuple(configs) == ("noto", "twemoji", "openmoji", "fluent")
  assert tfds.builder_cls("emoji_domains") is emoji_domains_tfds.EmojiDomains
