"""Class names, label maps and class masks of the shift benchmarks, and what applies them."""

from collections.abc import Sequence
import csv
import os

import numpy as np

from subtune_jax.data import dataset

CIFAR10 = (
  "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
STL10 = (
  "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck",
)  # fmt: skip

# From STL-10's classes to CIFAR-10's; monkey is dropped, and nothing becomes frog.
STL10_TO_CIFAR10 = (0, 2, 1, 3, 4, 5, 7, -1, 8, 9)

# The 40 classes of DomainNet that SENTRY (Prabhu et al., 2021) uses, and after it LP-FT.
DOMAINNET40 = (
  "airplane", "ambulance", "apple", "backpack", "banana", "bathtub", "bear", "bed", "bee",
  "bicycle", "bird", "book", "bridge", "bus", "butterfly", "cake", "calculator", "camera", "car",
  "cat", "chair", "clock", "cow", "dog", "dolphin", "donut", "drums", "duck", "elephant", "fence",
  "fork", "horse", "house", "rabbit", "scissors", "sheep", "strawberry", "table", "telephone",
  "truck",
)  # fmt: skip


def by_name(names: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
  """Returns the label map from the classes `names` to `wanted`; the others are dropped (-1).

  Raises:
    ValueError: a wanted class is not among `names`.
  """
  lacking = [name for name in wanted if name not in names]
  if lacking:
    raise ValueError(f"The classes {lacking} are not among the {len(names)} of the data set.")
  return tuple(wanted.index(name) if name in wanted else -1 for name in names)


def apply(
  data: dataset.Dataset, label_map: Sequence[int], class_names: tuple[str, ...]
) -> dataset.Dataset:
  """Renumbers the labels and drops the examples whose class maps to -1.

  Args:
    data: of the shifted set, with its own classes.
    label_map: one new label, or -1, for each of `data.class_names`.
    class_names: of the new labels, those of the head.

  Raises:
    ValueError: a map of another length, a new label out of range, or no example left.
  """
  new = np.asarray(label_map, np.int32)
  if new.shape != (len(data.class_names),) or new.max() >= len(class_names) or new.min() < -1:
    raise ValueError(
      f"{data.name}: the label map must give -1 or 0 to {len(class_names) - 1} for each of the "
      f"{len(data.class_names)} classes, got {len(new)} values from {new.min()} to {new.max()}."
    )
  labels = new[data.labels]
  kept = np.flatnonzero(labels >= 0)
  if not len(kept):
    raise ValueError(f"{data.name}: no example has a class that the label map keeps.")
  data = data.subset(kept) if len(kept) < len(labels) else data
  return dataset.Dataset(
    data.images, labels[kept], data.groups, data.ids, class_names, data.name, data.split
  )


def mask_of_labels(labels: np.ndarray, num_classes: int, expected: int) -> np.ndarray:
  """Returns which of the head's classes occur: predictions are restricted to them.

  Args:
    labels: [n] of the whole shifted set, not of a sample.
    num_classes: of the head.
    expected: how many classes the benchmark has, such as 200 for ImageNet-R.

  Returns:
    [num_classes] bool.

  Raises:
    ValueError: another number of classes occurs.
  """
  mask = np.bincount(labels, minlength=num_classes) > 0
  if mask.sum() != expected:
    raise ValueError(
      f"{mask.sum()} classes occur, the benchmark has {expected}. Is the data set whole? Or pass "
      "the file that lists the classes."
    )
  return mask


def mask_of_file(path: str | os.PathLike, class_names: Sequence[str]) -> np.ndarray:
  """Returns the class mask of a list of class names, such as WordNet ids, one per line.

  Raises:
    ValueError: a name that is no class, or an empty file.
  """
  with open(path, encoding="utf-8") as file:
    names = [line.strip() for line in file if line.strip()]
  unknown = sorted(set(names) - set(class_names))
  if unknown or not names:
    raise ValueError(
      f"{os.fspath(path)}: {len(unknown)} of {len(names)} lines are no class, such as "
      f"{unknown[:3]}; the classes are named like {list(class_names[:3])}."
    )
  return np.isin(class_names, names)


def read_breeds(
  path: str | os.PathLike, *, num_classes: int, subclasses: int
) -> tuple[tuple[str, ...], dict[str, dict[str, int]]]:
  """Reads a BREEDS class list: a CSV file with the columns superclass, domain, wnid.

  `domain` is "source" or "target", `wnid` the name of a folder of ImageNet, such as n02106166.

  Args:
    path: of the file.
    num_classes: superclasses that the benchmark has (Living-17: 17, Entity-30: 30).
    subclasses: per superclass and domain (Living-17: 2, Entity-30: 4).

  Returns:
    The superclasses in the order of the file, and for each domain the label of each wnid.

  Raises:
    ValueError: other columns, counts or domains, or a wnid given twice.
  """
  with open(path, encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
  if not rows or set(rows[0]) != {"superclass", "domain", "wnid"}:
    raise ValueError(f"{os.fspath(path)} must have the columns superclass, domain and wnid.")
  names = tuple(dict.fromkeys(row["superclass"] for row in rows))
  labels: dict[str, dict[str, int]] = {"source": {}, "target": {}}
  for row in rows:
    if row["domain"] not in labels:
      raise ValueError(f"{os.fspath(path)}: domain {row['domain']!r}; allowed: {list(labels)}.")
    if any(row["wnid"] in given for given in labels.values()):
      raise ValueError(f"{os.fspath(path)}: {row['wnid']} is given twice.")
    labels[row["domain"]][row["wnid"]] = names.index(row["superclass"])
  for domain, given in labels.items():
    counts = np.bincount(list(given.values()), minlength=len(names)).tolist()
    if counts != [subclasses] * num_classes:
      raise ValueError(
        f"{os.fspath(path)}: {domain} must have {subclasses} subclasses in each of {num_classes} "
        f"superclasses, got {dict(zip(names, counts, strict=True))}."
      )
  return names, labels
