"""Emoji Domains as a TFDS builder, `emoji_domains/{noto,twemoji,openmoji,fluent}`.

A thin layer over `emoji_domains.SET`: the same arrays, labels and order, nothing downloaded.
Importing this module registers the builder, and is what imports TensorFlow Datasets:

  from subtune_jax.data import emoji_domains_tfds
  tfds.load("emoji_domains/noto", split="train")
"""

from subtune_jax.data import emoji_domains, shipped_tfds


class EmojiDomains(shipped_tfds.Builder):
  """One config per domain; examples are {image, label, concept, id}, in the reader's order."""

  SET = emoji_domains.SET
  BUILDER_CONFIGS = shipped_tfds.configs(SET)
  NOTE = "; classes after emoji-datasource 16.0.0 (MIT)"
  ABOUT = """\
Emoji Domains: 1,087 emoji, each drawn by four design teams (the domains), 96 x 96 RGB on white, in
45 classes. The splits are by concept and the same in every domain: 652 train, 174 validation and
261 test images. A concept holds the variants of one thing; resample concepts, not images."""
