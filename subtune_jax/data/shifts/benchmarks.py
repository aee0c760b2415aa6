"""The shift benchmarks: what to train on, what to test on, and how the classes correspond."""

from collections.abc import Mapping
import dataclasses
from typing import Final, Literal

import numpy as np

from subtune_jax.data import choices, dataset
from subtune_jax.data.shifts import maps, tfds_sets

OCCURRING: Final = "occurring"  # A class mask of the classes that occur in the shifted set.
Allowed = Literal["occurring"] | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Shift:
  """A benchmark of distribution shift.

  Attributes:
    name: of the benchmark.
    id_data: the data set to train, choose and test in distribution on.
    ood_data: the shifted ones, only for testing.
    label_maps: for shifted sets with other classes, the new label of each of theirs, -1 dropped;
      a set that is not here has the head's classes.
    class_masks: for shifted sets that restrict predictions, the classes that are allowed, or
      `OCCURRING`; a set that is not here allows all.
    num_masked: for `OCCURRING`, how many classes there must be.
    note: what a reader of the numbers has to know.
  """

  name: str
  id_data: str
  ood_data: tuple[str, ...]
  label_maps: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
  class_masks: Mapping[str, Allowed] = dataclasses.field(default_factory=dict)
  num_masked: int = 0
  note: str = ""

  def map_labels(
    self, ood: str, data: dataset.Dataset, class_names: tuple[str, ...]
  ) -> dataset.Dataset:
    """Returns a shifted set with the head's labels.

    Args:
      ood: its name, of `ood_data`.
      data: the set as loaded.
      class_names: of the head, those of `id_data`.

    Raises:
      ValueError: an unknown name, or other classes than the head's and no map.
    """
    choices.check(f"shifted set of {self.name}", ood, self.ood_data)
    if ood in self.label_maps:
      return maps.apply(data, self.label_maps[ood], class_names)
    if data.class_names != class_names:
      raise ValueError(
        f"{self.name}: {ood} has the classes {data.class_names[:3]}... ({len(data.class_names)}), "
        f"the head {class_names[:3]}... ({len(class_names)}), and there is no label map."
      )
    return data

  def class_mask(self, ood: str, labels: np.ndarray, num_classes: int) -> np.ndarray | None:
    """Returns which classes may be predicted on a shifted set, [num_classes] bool; None for all.

    Args:
      ood: its name, of `ood_data`.
      labels: [n] of the whole set, in the head's numbering.
      num_classes: of the head.

    Raises:
      ValueError: an unknown name, or another number of classes than the benchmark has.
    """
    choices.check(f"shifted set of {self.name}", ood, self.ood_data)
    rule = self.class_masks.get(ood)
    if rule is None:
      return None
    if isinstance(rule, str):  # `OCCURRING`
      return maps.mask_of_labels(labels, num_classes, self.num_masked)
    mask = np.zeros(num_classes, bool)
    mask[list(rule)] = True
    return mask


def _all_corruptions(prefix: str) -> tuple[str, ...]:
  return tuple(
    f"{prefix}/{corruption}/{severity}"
    for corruption in tfds_sets.COMMON
    for severity in tfds_sets.SEVERITIES
  )


_OFFICE_HOME = tuple(f"office_home/{name}" for name in ("art", "clipart", "product", "real_world"))
_MEAN_NOTE = "The published number is one for all shifted domains; print each, and say which mean."

_ALL = (
  Shift(
    "cifar10_to_stl10",
    "cifar10",
    ("stl10",),
    label_maps={"stl10": maps.STL10_TO_CIFAR10},
    note="9 shared classes: monkey is dropped; the head keeps frog, of which there is no image.",
  ),
  Shift("cifar10_to_cifar10_1", "cifar10", ("cifar10_1", "cifar10_1/v4")),
  Shift("cifar10_to_cifar10_c", "cifar10", _all_corruptions("cifar10_c")),
  Shift(
    "imagenet",
    "imagenet",
    ("imagenet_v2", "imagenet_r", "imagenet_a", "imagenet_sketch"),
    class_masks={"imagenet_r": OCCURRING, "imagenet_a": OCCURRING},
    num_masked=200,
    note="On R and A the prediction is the best of their 200 classes.",
  ),
  Shift("imagenet_to_imagenet_c", "imagenet", _all_corruptions("imagenet_c")),
  Shift(
    "domainnet40",
    "domainnet40/sketch",
    ("domainnet40/real", "domainnet40/clipart", "domainnet40/painting"),
    note=(
      "SENTRY's 40 classes with TFDS's train and test split, not SENTRY's own lists of images. "
      + _MEAN_NOTE
    ),
  ),
  Shift(
    "domainnet",
    "domainnet/sketch",
    tuple(f"domainnet/{d}" for d in ("real", "clipart", "painting", "quickdraw", "infograph")),
  ),
  Shift("living17", "living17/source", ("living17/target",)),
  Shift("entity30", "entity30/source", ("entity30/target",)),
  Shift("fmow", "fmow/americas", ("fmow/europe", "fmow/africa"), note=_MEAN_NOTE),
  *(
    Shift(domain.replace("/", "_"), domain, tuple(d for d in _OFFICE_HOME if d != domain))
    for domain in _OFFICE_HOME
  ),
)
SHIFTS = {shift.name: shift for shift in _ALL}
