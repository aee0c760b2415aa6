"""The 19 tasks of VTAB-1k as a table, and the scores over them.

Zhai et al. (2019). Each task has 1,000 labelled images: 800 to train on and 200 to choose
hyper-parameters with. The images are the first ones of the prepared data set, in its order on disk.
"""

from collections.abc import Callable, Mapping
import dataclasses
import statistics
from typing import Any

from subtune_jax.data import tfds_source
from subtune_jax.data.vtab import labels

GROUPS = ("natural", "specialized", "structured")


@dataclasses.dataclass(frozen=True)
class Task:
  """One task.

  Attributes:
    name: behind "vtab/", such as "clevr_count".
    group: "natural", "specialized" or "structured".
    source: the data set in TensorFlow Datasets.
    train: split expression of the 800 training images.
    validation: of the 200 images for choices.
    test: of the test images.
    num_classes: of the task, not of the data set.
    label: from one example to its class.
    class_names: of derived labels; empty takes the data set's own.
    image_scale: what stored values are multiplied with to reach 0..255.
  """

  name: str
  group: str
  source: tfds_source.Source
  train: str
  validation: str
  test: str
  num_classes: int
  label: Callable[[labels.Example], int] = labels.plain
  class_names: tuple[str, ...] = ()
  image_scale: int = 1

  def splits(self) -> dict[str, str]:
    """Returns the split expression of each of our splits; "trainval" is train, then validation."""
    return {
      "train": self.train,
      "validation": self.validation,
      "trainval": f"{self.train}+{self.validation}",
      "test": self.test,
    }


def _source(builder: str, version: str, download: str, manual: str = "", needs: str = ""):
  return tfds_source.Source(builder, version, download, manual, tuple(needs.split()))


_CLEVR = _source("clevr", "3.1.0", "19 GB")
_DSPRITES = _source("dsprites", "2.0.0", "28 MB", needs="h5py")
_SMALLNORB = _source("smallnorb", "2.0.0", "263 MB")
_FASHION_MNIST = _source("fashion_mnist", "3.0.1", "31 MB")
_RESISC45 = _source(
  "resisc45",
  "3.0.0",
  "0.4 GB",
  manual=(
    "from https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs: NWPU-RESISC45.rar unpacked, so that "
    "NWPU-RESISC45/airplane/ and the other 44 folders are there"
  ),
)
_RETINOPATHY = _source(
  "diabetic_retinopathy_detection/btgraham-300",
  "3.0.0",
  "about 90 GB",
  manual=(
    "from https://www.kaggle.com/c/diabetic-retinopathy-detection/data (needs an account): "
    "train.zip, test.zip and sample.zip unpacked to train/, test/ and sample/, and the unpacked "
    "trainLabels.csv and sampleSubmission.csv beside them"
  ),
  needs="cv2",
)


def _splits(validation: str, test: str = "test") -> dict[str, Any]:
  return {"train": "train[:800]", "validation": validation, "test": test}


def _tail(start: int) -> dict[str, Any]:
  """Returns splits whose validation images lie in the training split, from `start` on."""
  return _splits(f"train[{start}:{start + 200}]")


_CLEVR_SPLITS = _splits("train[63000:63200]", "validation")
_DSPRITES_SPLITS = _splits("train[589824:590024]", "train[663552:]")
# The validation images come from the test split, as in the official code.
_SMALLNORB_SPLITS = _splits("test[:200]", "test[50%:]")
_OWN_VALIDATION = _splits("validation[:200]")

_ALL = (
  Task("cifar100", "natural", _source("cifar100", "3.0.2", "169 MB"), **_tail(45000),
       num_classes=100),
  Task("caltech101", "natural", _source("caltech101", "3.0.2", "137 MB"), **_tail(2754),
       num_classes=102),
  Task("dtd", "natural", _source("dtd", "3.0.1", "625 MB"), **_OWN_VALIDATION, num_classes=47),
  Task("flowers102", "natural", _source("oxford_flowers102", "2.1.1", "345 MB", needs="scipy"),
       **_OWN_VALIDATION, num_classes=102),
  Task("pets", "natural", _source("oxford_iiit_pet", "4.0.0", "811 MB"), **_tail(2944),
       num_classes=37),
  Task("svhn", "natural", _source("svhn_cropped", "3.1.0", "1.6 GB"),
       **_tail(65931), num_classes=10),
  Task("sun397", "natural", _source("sun397/tfds", "4.0.0", "39 GB", needs="cv2"),
       **_OWN_VALIDATION, num_classes=397),
  Task("patch_camelyon", "specialized", _source("patch_camelyon", "2.0.0", "8.0 GB", needs="h5py"),
       **_OWN_VALIDATION, num_classes=2),
  Task("eurosat", "specialized", _source("eurosat/rgb", "2.0.0", "94 MB"),
       train="train[:800]", validation="train[16200:16400]", test="train[21600:]", num_classes=10),
  Task("resisc45", "specialized", _RESISC45,
       train="train[:800]", validation="train[18900:19100]", test="train[25200:]", num_classes=45),
  Task("retinopathy", "specialized", _RETINOPATHY, **_OWN_VALIDATION, num_classes=5),
  Task("clevr_count", "structured", _CLEVR, **_CLEVR_SPLITS, num_classes=8,
       label=labels.clevr_count, class_names=tuple(f"{n} objects" for n in range(3, 11))),
  Task("clevr_distance", "structured", _CLEVR, **_CLEVR_SPLITS, num_classes=6,
       label=labels.clevr_distance,
       class_names=("to 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "over 10")),
  Task("dmlab", "structured", _source("dmlab", "2.0.1", "3.0 GB"), **_OWN_VALIDATION,
       num_classes=6),
  Task("kitti_distance", "structured", _source("kitti", "3.3.0", "12.6 GB", needs="cv2"),
       **_OWN_VALIDATION, num_classes=4, label=labels.kitti_distance,
       class_names=("to 8 m", "8 to 20 m", "over 20 m", "no vehicle")),
  Task("dsprites_location", "structured", _DSPRITES, **_DSPRITES_SPLITS, num_classes=16,
       label=labels.dsprites_location, image_scale=255,
       class_names=tuple(f"x {2 * n} to {2 * n + 1}" for n in range(16))),
  Task("dsprites_orientation", "structured", _DSPRITES, **_DSPRITES_SPLITS, num_classes=16,
       label=labels.dsprites_orientation, image_scale=255,
       class_names=tuple(f"orientation bin {n}" for n in range(16))),
  Task("smallnorb_azimuth", "structured", _SMALLNORB, **_SMALLNORB_SPLITS, num_classes=18,
       label=labels.smallnorb_azimuth,
       class_names=tuple(f"{20 * n} degrees" for n in range(18))),
  Task("smallnorb_elevation", "structured", _SMALLNORB, **_SMALLNORB_SPLITS, num_classes=9,
       label=labels.smallnorb_elevation,
       class_names=tuple(f"{30 + 5 * n} degrees" for n in range(9))),
)  # fmt: skip
TASKS = {task.name: task for task in _ALL}

# No task of VTAB; taken in its way (90 % of the training split, then the rest for validation).
EXTRA = {
  "fashion_mnist": Task("fashion_mnist", "none", _FASHION_MNIST, **_tail(54000), num_classes=10)
}


def score(accuracies: Mapping[str, float]) -> float:
  """Returns the official VTAB score: the mean over the 19 tasks, each counting the same.

  Args:
    accuracies: test accuracy by task name, all 19, with or without "vtab/" before it.

  Raises:
    ValueError: a task is missing, or a name is not a task.
  """
  return statistics.fmean(_checked(accuracies).values())


def group_means(accuracies: Mapping[str, float]) -> dict[str, float]:
  """Returns the mean of each group: natural (7 tasks), specialized (4), structured (8).

  Args, raises: as `score`.
  """
  checked = _checked(accuracies)
  return {
    group: statistics.fmean(checked[name] for name in TASKS if TASKS[name].group == group)
    for group in GROUPS
  }


def mean_of_group_means(accuracies: Mapping[str, float]) -> float:
  """Returns the mean of the three group means, which many papers print as "average".

  It is 2 to 5 points above `score`, since the structured tasks are hard and count for less.

  Args, raises: as `score`.
  """
  return statistics.fmean(group_means(accuracies).values())


def _checked(accuracies: Mapping[str, float]) -> dict[str, float]:
  short = {name.removeprefix("vtab/"): value for name, value in accuracies.items()}
  missing, unknown = sorted(TASKS.keys() - short.keys()), sorted(short.keys() - TASKS.keys())
  if missing or unknown or len(short) != len(accuracies):
    raise ValueError(
      f"A VTAB score needs each of the 19 tasks once; missing: {missing}, not tasks: {unknown}, "
      f"given: {len(accuracies)} values. For fewer tasks, name them and print their own mean."
    )
  return short
