"""What the TFDS builders of the shipped sets share; importing it imports TensorFlow Datasets."""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from subtune_jax.data import shipped

_CITATION = """\
@misc{{{name}_{domain},
  title = {{{title}, domain {domain}}},
  note = {{{note}}},
}}
"""


def configs(own: shipped.Shipped) -> list[tfds.core.BuilderConfig]:
  """Returns one config per domain."""
  return [
    tfds.core.BuilderConfig(name=domain, description=attribution)
    for domain, attribution in own.attribution.items()
  ]


# tfds has no types.
class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Examples are {image, label, GROUP, id}, in the reader's order; nothing is downloaded.

  Attributes:
    SET: what is built; GROUP is its `group`, such as "concept".
    ABOUT: the description, before the attribution.
    NOTE: of the citation, behind the attribution.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  SET: shipped.Shipped
  ABOUT: str
  NOTE = ""

  def _info(self) -> tfds.core.DatasetInfo:
    domain, size = self.builder_config.name, self.SET.native_size
    attribution = self.SET.attribution[domain]
    return tfds.core.DatasetInfo(
      builder=self,
      description=f"{self.ABOUT}\n\nThis domain: {attribution}.\n",
      features=tfds.features.FeaturesDict(
        {
          # PNG: TFDS may not lose the pixels that the reader gives.
          "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
          "label": tfds.features.ClassLabel(names=self.SET.class_names()),
          self.SET.group: tfds.features.Text(),
          "id": tfds.features.Text(),
        }
      ),
      supervised_keys=("image", "label"),
      disable_shuffling=True,
      citation=_CITATION.format(
        name=self.SET.name, title=self.SET.title, domain=domain, note=attribution + self.NOTE
      ),
      redistribution_info={"license": attribution},
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    del dl_manager  # The images come with the package.
    return {split: self._generate_examples(split) for split in self.SET.split_sizes}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    data = self.SET.load(self.builder_config.name, split)
    for index in range(len(data)):
      yield (
        index,
        {
          "image": data.images[index],
          "label": int(data.labels[index]),
          self.SET.group: str(data.groups[index]),
          "id": str(data.ids[index]),
        },
      )
