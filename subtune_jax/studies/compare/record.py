"""The records of a run: read, checked against each other, and handed to the tables and figures.

A run leaves `results.json` (what was trained and what it scored), `logits/*.npz` (of every chosen
training on every test set) and `images.npz` (a few test images). Nothing here needs jax.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any, NotRequired, TypedDict

import numpy as np
import scipy.special

from subtune_jax import files
from subtune_jax.report import block_strip
from subtune_jax.statistics import criteria, measures
from subtune_jax.studies import fields

IMAGES = "images.npz"
KINDS = ("compare", "robustness")  # what has a comparison in it


class Data(fields.Data):
  train: str
  id: str  # the test set in distribution
  ood: list[str]
  num_train: int
  num_validation: int
  num_test: dict[str, int]
  train_counts: NotRequired[list[int]]  # by class
  train_indices: NotRequired[list[int] | None]  # of the training split; null: all


class Stage(TypedDict):
  title: str
  blocks: list[str]  # trained, "head" among them or not: see `trained_blocks`
  trained_params: int
  solver: str
  epochs: float


class Scores(TypedDict):
  """On the validation images; null where the training diverged. Losses are in nats."""

  validation_accuracy: float | None
  validation_balanced_accuracy: NotRequired[float | None]
  validation_auroc: NotRequired[float | None]


class GridPoint(Scores):
  learning_rate: float  # or another setting
  validation_loss: float | None


class Selection(TypedDict):  # which features a head on all units reads
  units: list[dict[str, Any]]  # of each: unit, features, how many are kept
  kept: int
  fraction: float
  strength: float


class Method(TypedDict):
  name: str
  title: str
  stages: list[Stage]
  trained_params: int  # of the largest stage
  grid: list[GridPoint]
  setting: str  # what was chosen: "learning_rate" or "l2"
  learning_rate: float  # its value
  grid_edge: bool
  fork_macs: NotRequired[float]  # multiply-adds of one more such task, an image
  selection: NotRequired[Selection]


class Epoch(Scores):
  stage: int  # from 0
  epoch: float  # from 1
  train_loss: float | None
  train_accuracy: float | None
  validation_loss: float | None


class Step(TypedDict):
  milliseconds: float
  bytes: int | None  # of memory


class Test(TypedDict):
  accuracy: float
  loss: float | None
  logits: str  # path in the workdir


class Training(Scores):
  key: NotRequired[str]  # in the ledger
  method: str
  seed: int
  learning_rate: float
  chosen: bool
  seconds: float
  compile_seconds: float
  moved: float | None  # |theta - theta_0| / |theta_0| of the backbone
  step: NotRequired[Step | None]  # of the stage that trains the most by steps
  history: list[Epoch]  # empty where it diverged
  test: NotRequired[dict[str, Test]]  # of a chosen one, by test set


class Record(fields.Record):
  data: Data
  methods: list[Method]
  trainings: list[Training]
  best: NotRequired[dict[str, str | int]]  # of the model folder: method, seed, folder


_ARRAYS = ("logits", "labels", "groups", "ids")


@dataclasses.dataclass(frozen=True)
class TestSet:
  """One test set, and what every method predicted on it.

  Attributes:
    name: the dataset, e.g. "emoji_domains/twemoji".
    labels: true classes, int [num_examples].
    groups: the concept of each example, the unit that a bootstrap resamples, str [num_examples].
    ids: str [num_examples].
    predicted: per method the predicted classes, int [num_seeds, num_examples], by ascending seed;
      one row for a method that was trained once.
    seeds: the seeds, ascending.
    measures: per method and measure (`statistics.measures`), float [num_seeds, num_examples]:
      numbers whose mean is the measure.
  """

  __test__ = False  # Not a test case, whatever pytest thinks of the name.

  name: str
  labels: np.ndarray
  groups: np.ndarray
  ids: np.ndarray
  predicted: Mapping[str, np.ndarray]
  seeds: tuple[int, ...]
  measures: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)

  def correct(self, method: str) -> np.ndarray:
    """Whether each prediction of `method` is right, bool [num_seeds, num_examples]."""
    return self.predicted[method] == self.labels[None, :]


@dataclasses.dataclass(frozen=True)
class TestImages:
  """A few images of one test set: uint8 [k, height, width, 3], and their ids, str [k]."""

  __test__ = False

  images: np.ndarray
  ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
  """A checked run: `record` is the content of results.json, `tests` the test sets by name."""

  workdir: pathlib.Path
  record: Record
  tests: Mapping[str, TestSet]

  @property
  def methods(self) -> list[str]:
    return [method["name"] for method in self.record["methods"]]

  @property
  def titles(self) -> dict[str, str]:
    return {method["name"]: method["title"] for method in self.record["methods"]}

  @property
  def seeds(self) -> tuple[int, ...]:
    return self.tests[self.record["data"]["id"]].seeds

  def method(self, name: str) -> Method:
    return next(method for method in self.record["methods"] if method["name"] == name)

  def chosen(self, method: str) -> list[Training]:
    """The trainings of `method` at its chosen setting, by seed."""
    return _chosen(self.record, method)


def short_names(names: Sequence[str]) -> dict[str, str]:
  """Last path components ("emoji_domains/noto" -> "noto"); whole names where those collide.

  Of a corrupted copy it is the corruption: "fashion_mnist+fog/5" -> "fog/5".
  """
  last = [name.split("+", 1)[1] if "+" in name else name.rsplit("/", 1)[-1] for name in names]
  return {n: s if last.count(s) == 1 else n for n, s in zip(names, last, strict=True)}


def trained_blocks(stage: Stage, backbone: fields.Backbone) -> frozenset[str]:
  """Blocks that a stage of the record trains, "head" included.

  A stage that trains more parameters than its named blocks hold trains the head too.
  """
  blocks = frozenset(stage["blocks"])
  held = sum(backbone["block_params"].get(block, 0) for block in blocks)
  return blocks | {block_strip.HEAD} if stage["trained_params"] > held else blocks


def _check(record: Any, where: str) -> None:
  """Checks the shape of a record and the names that its parts share."""
  fields.check_record(record, Record, where, *KINDS)
  backbone, data = record["backbone"], record["data"]
  if sorted(backbone["block_params"]) != sorted(backbone["block_names"]):
    raise ValueError(
      f"{where}: backbone.block_params names {sorted(backbone['block_params'])}, "
      f"backbone.block_names {sorted(backbone['block_names'])}; they have to be the same."
    )
  names = [method["name"] for method in record["methods"]]
  if not names or len(set(names)) != len(names):
    raise ValueError(f"{where}: methods are {names}; at least one is needed, each named once.")
  chosen_by = criteria.fields(criteria.of(record["config"]))
  blocks = [*backbone["block_names"], block_strip.HEAD]
  for method in record["methods"]:
    place = f"{where}: method {method['name']!r}"
    for i, stage in enumerate(method["stages"]):
      for block in stage["blocks"]:
        fields.check_one_of(block, blocks, f"{place}: a block of stages[{i}]")
    for i, point in enumerate(method["grid"]):
      fields.check_has(point, chosen_by, f"{place}: grid[{i}]")
  for i, training in enumerate(record["trainings"]):
    fields.check_one_of(training["method"], names, f"{where}: trainings[{i}].method")
  for name in [data["id"], *data["ood"]]:
    fields.check_one_of(name, sorted(data["num_test"]), f"{where}: a set of data.id, data.ood")


def _read_logits(workdir: pathlib.Path, entry: Test, num_classes: int, where: str):
  """Arrays of one logits file, checked against `entry` of the record (accuracy, path)."""
  path = (workdir / entry["logits"]).resolve()
  if not path.is_relative_to(workdir.resolve()):
    raise ValueError(f"{where}: logits lie at {entry['logits']!r}, outside of {workdir}.")
  arrays = files.read_npz(path, f"the logits of {where}")
  missing = sorted(set(_ARRAYS) - set(arrays))
  if missing:
    raise ValueError(f"{path} lacks {', '.join(missing)}; it has {', '.join(sorted(arrays))}.")
  logits, labels = arrays["logits"], arrays["labels"]
  if logits.ndim != 2 or logits.shape[1] != num_classes or not len(logits):
    raise ValueError(f"{path}: logits are {logits.shape}, wanted [examples, {num_classes}].")
  shapes = {key: arrays[key].shape for key in ("labels", "groups", "ids")}
  if any(shape != (len(logits),) for shape in shapes.values()):
    raise ValueError(f"{path}: {shapes} beside {len(logits)} rows of logits.")
  if not np.isfinite(logits).all():
    raise ValueError(f"{path}: logits are not finite; the training of {where} diverged.")
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(f"{path}: labels {labels.min()}..{labels.max()} of {num_classes} classes.")
  accuracy = float(np.mean(logits.argmax(-1) == labels))
  if not abs(accuracy - entry["accuracy"]) <= 1e-6:
    raise ValueError(
      f"{where}: the record says accuracy {entry['accuracy']:.6f}, its logits in {path} say "
      f"{accuracy:.6f}. One of the two files is from another run; run again in an empty workdir."
    )
  return arrays


def _test_set(workdir: pathlib.Path, record: Record, name: str, seeds: tuple[int, ...]) -> TestSet:
  """Reads what every method and seed predicted on the test set `name`."""
  num_classes = len(record["data"]["class_names"])
  first: dict[str, np.ndarray] = {}
  first_where, predicted, measured = "", {}, {}
  for method in (m["name"] for m in record["methods"]):
    rows, scores = [], []
    for training in _chosen(record, method):
      where = f"method {method!r}, seed {training['seed']}, on {name!r}"
      entry = training.get("test", {}).get(name)
      if entry is None:
        raise ValueError(f"{workdir / fields.RESULTS}: no test of {where}, a chosen training.")
      arrays = _read_logits(workdir, entry, num_classes, where)
      if not first:
        first, first_where = arrays, where
      for key in ("labels", "groups", "ids"):
        if not np.array_equal(first[key], arrays[key]):
          raise ValueError(
            f"{key} of {where} are not those of {first_where}: without the same images in the "
            "same order, methods cannot be compared image by image. Run again in an empty workdir."
          )
      rows.append(arrays["logits"].argmax(-1))
      scores.append(_measures(arrays["logits"], arrays["labels"]))
    predicted[method] = np.stack(rows)
    measured[method] = {name: np.stack([own[name] for own in scores]) for name in scores[0]}
  count = record["data"]["num_test"][name]
  if len(first["labels"]) != count:
    raise ValueError(
      f"{workdir / fields.RESULTS}: data.num_test says {count} images of {name!r}, the logits are "
      f"of {len(first['labels'])}."
    )
  return TestSet(
    name, first["labels"], first["groups"].astype(str), first["ids"].astype(str), predicted, seeds,
    measured,
  )  # fmt: skip


def _measures(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
  """Each measure's [n] scores of one training."""
  probabilities = scipy.special.softmax(logits.astype(np.float64), axis=-1)
  return {own.name: own.scores(probabilities, labels) for own in measures.MEASURES}


def chosen_of(record: Record, method: str) -> list[Training]:
  """The trainings of a method at its chosen setting, one a seed, as the record has them."""
  return [row for row in record["trainings"] if row["method"] == method and row["chosen"]]


def _chosen(record: Record, method: str) -> list[Training]:
  return sorted(chosen_of(record, method), key=lambda training: training["seed"])


def _common_seeds(record: Record, where: str) -> tuple[int, ...]:
  """The seeds of the chosen trainings: the same for every method, or a single one."""
  seeds = {m["name"]: [t["seed"] for t in _chosen(record, m["name"])] for m in record["methods"]}
  most = max(seeds.values(), key=len)
  if any(len(s) != 1 and s != most for s in seeds.values()) or len(set(most)) != len(most):
    raise ValueError(
      f"{where}: chosen trainings have the seeds {seeds}; every method needs the same ones, each "
      "once (or one alone, if its training is deterministic): methods are compared seed by seed."
    )
  return tuple(most)


def load(workdir: str | os.PathLike) -> Run:
  """Reads the records in `workdir` and checks them.

  Every accuracy is computed again from its logits.

  Raises:
    FileNotFoundError: results.json, or a file of logits that it names, is not there.
    ValueError: a file is damaged or not a record of this library, two parts of the record
      contradict each other, or an accuracy is not that of its logits.
  """
  workdir = pathlib.Path(workdir)
  record: Record = fields.load(workdir, _check)
  seeds = _common_seeds(record, f"{workdir / fields.RESULTS}")
  names = dict.fromkeys([record["data"]["id"], *record["data"]["ood"]])
  tests = {name: _test_set(workdir, record, name, seeds) for name in names}
  return Run(workdir, record, tests)


def save_images(
  workdir: str | os.PathLike,
  images: Mapping[str, np.ndarray],
  ids: Mapping[str, np.ndarray],
  *,
  max_images: int = 24,
  file: str = IMAGES,
) -> pathlib.Path:
  """Writes images for the report to WORKDIR/images.npz, or to another file there.

  Args:
    workdir: the run's directory.
    images: per test set uint8 [n, height, width, 3], the images as they are shown to a person.
    ids: per test set str [n], the same ids as in the files of logits.
    max_images: how many of each set are kept, from its start.
    file: its name in the workdir.

  Returns:
    The path written: arrays "images/NAME" and "ids/NAME" for every test set NAME.
  """
  if set(images) != set(ids):
    raise ValueError(f"images are of {sorted(images)}, ids of {sorted(ids)}; they must agree.")
  arrays = {}
  for name, stack in images.items():
    these = np.asarray(ids[name]).astype(str)
    if stack.dtype != np.uint8 or stack.ndim != 4 or stack.shape[-1] != 3:
      raise ValueError(
        f"images of {name!r} are {stack.dtype} {stack.shape}, wanted uint8 [n, height, width, 3]."
      )
    if these.shape != stack.shape[:1]:
      raise ValueError(f"{name!r} has {len(stack)} images and ids of shape {these.shape}.")
    arrays[f"images/{name}"], arrays[f"ids/{name}"] = stack[:max_images], these[:max_images]
  path = pathlib.Path(workdir) / file
  files.write_npz(path, arrays)
  return path


def load_images(workdir: str | os.PathLike, file: str = IMAGES) -> dict[str, TestImages]:
  """Reads what `save_images` wrote to `file`; an empty dict if the run saved no images.

  Raises:
    ValueError: the file is damaged, or not written by `save_images`.
  """
  path = pathlib.Path(workdir) / file
  if not path.is_file():
    return {}
  arrays = files.read_npz(path, "test images for the report")
  names = [key.removeprefix("images/") for key in arrays if key.startswith("images/")]
  if sorted(arrays) != sorted([f"images/{n}" for n in names] + [f"ids/{n}" for n in names]):
    raise ValueError(f"{path} holds {sorted(arrays)}, not images/NAME and ids/NAME in pairs.")
  return {n: TestImages(arrays[f"images/{n}"], arrays[f"ids/{n}"].astype(str)) for n in names}
