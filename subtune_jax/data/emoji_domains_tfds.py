"""Emoji Domains as a TFDS builder, `emoji_domains/{noto,twemoji,openmoji,fluent}`.

A thin layer over `emoji_domains.load`: the same arrays, labels and order, nothing downloaded.
Importing this module registers the builder, and is what imports TensorFlow Datasets:

  from subtune_jax.data import emoji_domains_tfds
  tfds.load("emoji_domains/noto", split="train")
"""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from subtune_jax.data import emoji_domains

_DESCRIPTION = """\
Emoji Domains: 1,087 emoji, each drawn by four design teams (the domains), 96 x 96 RGB on white, in
45 classes. The splits are by concept and the same in every domain: 652 train, 174 validation and
261 test images. A concept holds the variants of one thing; resample concepts, not images.

This domain: {attribution}.
"""

_CITATION = """\
@misc{{emoji_domains_{domain},
  title = {{Emoji Domains, domain {domain}}},
  note = {{{attribution}; classes after emoji-datasource 16.0.0 (MIT)}},
}}
"""


class EmojiDomains(tfds.core.GeneratorBasedBuilder):
  """One config per domain; examples are {image, label, concept, id}, in the reader's order."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name=domain, description=attribution)
    for domain, attribution in emoji_domains.ATTRIBUTION.items()
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    domain = self.builder_config.name
    attribution = emoji_domains.ATTRIBUTION[domain]
    size = emoji_domains.NATIVE_SIZE
    return tfds.core.DatasetInfo(
      builder=self,
      description=_DESCRIPTION.format(attribution=attribution),
      features=tfds.features.FeaturesDict(
        {
          # PNG: TFDS may not lose the pixels that the reader gives.
          "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
          "label": tfds.features.ClassLabel(names=emoji_domains.class_names()),
          "concept": tfds.features.Text(),
          "id": tfds.features.Text(),
        }
      ),
      supervised_keys=("image", "label"),
      disable_shuffling=True,
      citation=_CITATION.format(domain=domain, attribution=attribution),
      redistribution_info={"license": attribution},
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    del dl_manager  # The images come with the package.
    return {split: self._generate_examples(split) for split in emoji_domains.SPLIT_SIZES}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    data = emoji_domains.load(self.builder_config.name, split)
    for index in range(len(data)):
      yield (
        index,
        {
          "image": data.images[index],
          "label": int(data.labels[index]),
          "concept": str(data.groups[index]),
          "id": str(data.ids[index]),
        },
      )
