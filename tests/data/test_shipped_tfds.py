"""The TFDS builders give what the readers give."""

import numpy as np
import pytest

from subtune_jax.data import emoji_domains, glyph_domains

pytest.importorskip("tensorflow", reason="the TFDS builder needs tensorflow")
pytest.importorskip("tensorflow_datasets", reason="the TFDS builder needs tensorflow_datasets")

import tensorflow_datasets as tfds

from subtune_jax.data import emoji_domains_tfds, glyph_domains_tfds


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
  data_dir = tmp_path_factory.mktemp("tfds")
  builder = emoji_domains_tfds.EmojiDomains(config="fluent", data_dir=data_dir)
  builder.download_and_prepare()
  return builder


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_gives_the_readers_arrays_in_the_readers_order(builder, split):
  examples = list(tfds.as_numpy(builder.as_dataset(split=split)))
  data = emoji_domains.SET.load("fluent", split)
  np.testing.assert_array_equal(np.stack([e["image"] for e in examples]), data.images)
  np.testing.assert_array_equal([e["label"] for e in examples], data.labels)
  assert [e["concept"].decode() for e in examples] == data.groups.tolist()
  assert [e["id"].decode() for e in examples] == data.ids.tolist()


def test_class_names_are_the_readers(builder):
  assert tuple(builder.info.features["label"].names) == emoji_domains.SET.class_names()


def test_the_licence_goes_with_the_data(builder):
  attribution = emoji_domains.SET.attribution["fluent"]
  assert attribution in builder.info.description
  assert attribution in builder.info.citation
  assert (builder.data_path / "LICENSE").read_text().strip() == attribution


def test_has_one_config_per_domain_and_is_registered():
  configs = emoji_domains_tfds.EmojiDomains.builder_configs
  assert tuple(configs) == ("noto", "twemoji", "openmoji", "fluent")
  assert tfds.builder_cls("emoji_domains") is emoji_domains_tfds.EmojiDomains


def test_glyphs_are_the_readers(tmp_path):
  builder = glyph_domains_tfds.GlyphDomains(config="sans", data_dir=tmp_path)
  builder.download_and_prepare()
  assert tfds.builder_cls("glyph_domains") is glyph_domains_tfds.GlyphDomains
  assert tuple(builder.builder_configs) == ("serif", "sans", "handwriting", "display")
  assert tuple(builder.info.features["label"].names) == glyph_domains.CLASSES
  examples = list(tfds.as_numpy(builder.as_dataset(split="validation")))
  data = glyph_domains.SET.load("sans", "validation")
  np.testing.assert_array_equal(np.stack([e["image"] for e in examples]), data.images)
  np.testing.assert_array_equal([e["label"] for e in examples], data.labels)
  assert [e["font"].decode() for e in examples] == data.groups.tolist()
  assert (builder.data_path / "LICENSE").read_text().strip() == glyph_domains.SET.attribution[
    "sans"
  ]
