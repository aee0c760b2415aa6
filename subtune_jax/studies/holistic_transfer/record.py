"""The record of a study of holistic transfer: declared, and as its page and figures read it.

`holistic_transfer.run` says what is in the files that it names. Y: all classes, S: those seen in
fine-tuning, U: those absent from it.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import os
import pathlib
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np

from subtune_jax import files
from subtune_jax.report import estimate as estimate_lib
from subtune_jax.report import style
from subtune_jax.studies import fields
from subtune_jax.studies.compare import record as compare_record

Row = Mapping[str, Any]
PRETRAINED, FT = "pretrained", "ft"
NONE, ALG, PCV, STAR = "none", "alg", "pcv", "star"
CALIBRATIONS = {NONE: "as it is", ALG: "+ ALG", PCV: "+ PCV", STAR: "+ gamma*"}
# A number over seeds, null where one has none; with an interval where there are several concepts.
Number = TypedDict(
  "Number", {"mean": float | None, "by_seed": list[float | None], "95": NotRequired[fields.Ends]}
)
# Pair "Y/Y", "S/Y", "U/Y", "S/S" or "U/U" -> accuracy, by "micro" (over images) and "balanced"
# (over classes).
Averages = dict[str, dict[str, float | None]]
ByName = dict[str, float | None]


class Data(fields.Data):
  train: str  # the target
  source: NotRequired[str]  # "": a network that was loaded
  num_train: int
  num_validation: int
  num_test: int


class Partition(TypedDict):
  id: int
  seed: int
  how: str
  num_seen: int
  seen: list[int]  # classes
  absent: list[int]


class Method(TypedDict):
  name: str
  title: str
  oracle: bool  # it saw absent classes
  learning_rate: float  # or another setting
  grid: list[compare_record.GridPoint]
  grid_edge: bool


class Epoch(TypedDict):  # numbers of a network on the test images; logits in nats
  stage: int | None  # null: no training
  epoch: int | None
  file: str
  gamma: ByName  # "none" 0, "alg", "star" (an oracle), "pcv" where there is one
  accuracy: dict[str, Averages]  # by calibration
  ausuc: float | None  # micro area under `calibration.seen_unseen_curve(logits, labels, absent)`
  harmonic_mean: ByName  # the best on the curve: "value", "gamma"
  # Of "absent" and "seen" images: "p_absent", mean P(U|x); "answered_absent", a share.
  probabilities: dict[str, ByName]
  # Of absent images, mean logits: "own", "other" (largest other absent), their difference
  # "own_over_other", "seen" (largest seen), "seen_over_absent".
  margins: ByName
  # By nearest class means with "cosine" or "euclidean" distance: `Averages`, and "ausuc".
  ncm: NotRequired[dict[str, dict[str, Any]]]


class Network(TypedDict):
  id: int
  use: Literal["pretrained", "main", "wise", "block", "size", "sweep"]
  method: str  # "ft", "subtuning:14..top", "sweep:adam:0.0005"
  title: str
  seed: int
  partition: int  # id
  key: str | None  # of the training
  learning_rate: float | None
  alpha: NotRequired[float]  # of "wise"
  validation_accuracy: float | None
  trained_params: int
  seconds: float
  # Of the classifier's updates, last epoch: "similarity", mean cosine of "seen", "absent" and
  # "between"; "update_length", "norm_before", "norm_after" of "seen" and "absent".
  directions: NotRequired[dict[str, ByName]]
  # Of "size", and "main" of ft: accuracy of "head" and "ncm" on the absent classes that all sizes
  # share, among all classes ("Y") and these ("own").
  common: NotRequired[dict[str, ByName]]
  epochs: list[Epoch]  # every one of the methods in holistic.along, else the last; none: diverged


class PseudoValidation(TypedDict):
  method: str
  seed: int
  gamma: float
  splits: list[dict[str, Any]]  # "key", "file", "pseudo_absent" (classes) of trainings


class OverSeeds(TypedDict):  # the numbers of last epochs, of one calibration
  gamma: Number
  accuracy: dict[str, dict[str, Number]]
  ausuc: Number
  harmonic_mean: dict[str, Number]
  probabilities: dict[str, dict[str, Number]]
  margins: dict[str, Number]
  ncm: NotRequired[dict[str, dict[str, Any]]]


class TableRow(TypedDict):
  """Of the networks of a method that are "main", "wise" or "pretrained"."""

  method: str
  title: str
  calibration: str
  oracle: bool
  numbers: OverSeeds
  # "pretrained", "ft" -> "Y/Y", "S/Y", "U/Y", "AUSUC" -> [difference, low, high], paired.
  against: NotRequired[dict[str, dict[str, list[float | None]]]]


class BlockRow(TableRow):
  unit: str
  blocks: list[str]


class Body(TypedDict):
  source: dict[str, Any]  # how it was made: data, method, learning_rate, test_accuracy, file, ...
  partitions: list[Partition]
  methods: list[Method]
  networks: list[Network]
  pcv: list[PseudoValidation]
  table: list[TableRow]
  blocks: list[BlockRow]  # the same of SubTuning of each unit


class Record(fields.Record):
  data: Data
  holistic: Body


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number of each seed: fractions or nats; the mean is nan where a seed has none.

  Attributes:
    mean: over seeds.
    by_seed: the number of each.
    interval: 95 % interval of the mean over test concepts and seeds, or None.
  """

  mean: float
  by_seed: tuple[float, ...]
  interval: tuple[float, float] | None = None

  @property
  def range(self) -> tuple[float, float]:
    """The smallest and the largest of the seeds."""
    return min(self.by_seed), max(self.by_seed)


def estimate(number: Number) -> Estimate:
  """A number of the record's table."""
  seeds = tuple(fields.number(value) for value in number["by_seed"])
  interval = None
  if "95" in number:
    low, high = map(fields.number, number["95"])
    interval = (low, high)
  return Estimate(fields.number(number["mean"]), seeds, interval)


class Curve(NamedTuple):
  """A seen-unseen curve.

  Attributes:
    thresholds: [T] gammas at which an answer changes, rising.
    seen: [T + 1] Acc_S/Y between them, falling.
    unseen: [T + 1] Acc_U/Y, rising.
  """

  thresholds: np.ndarray
  seen: np.ndarray
  unseen: np.ndarray


@dataclasses.dataclass(frozen=True)
class Study:
  """A checked record, and the workdir that its files lie in."""

  record: Record
  workdir: pathlib.Path

  @property
  def body(self) -> Body:
    return self.record["holistic"]

  @property
  def class_names(self) -> list[str]:
    return self.record["data"]["class_names"]

  @property
  def num_seeds(self) -> int:
    return len({network["seed"] for network in self.networks("main", FT)})

  @property
  def has_intervals(self) -> bool:
    """Whether the tables have intervals: a test set of one concept gives none."""
    return "against" in self.body["table"][0]

  @functools.cached_property
  def names(self) -> dict[str, str]:
    """Title of the table -> a name for its colour: the method, or the title of a second variant."""
    found: dict[str, str] = {}
    for row in self.body["table"]:
      if row["title"] not in found:
        again = row["method"] in found.values()
        found[row["title"]] = row["title"] if again else row["method"]
    return found

  @property
  def colors(self) -> dict[str, str]:
    """Title of the table -> colour."""
    colors = style.colors(list(self.names.values()))
    return {title: colors[name] for title, name in self.names.items()}

  @property
  def markers(self) -> dict[str, style.Marker]:
    """Title of the table -> marker."""
    markers = style.markers(list(self.names.values()))
    return {title: markers[name] for title, name in self.names.items()}

  def title(self, method: str) -> str:
    """The title of a method of the table."""
    return next(row["title"] for row in self.body["table"] if row["method"] == method)

  @property
  def compared(self) -> list[str]:
    """Titles of the source model and of fine-tuning: the two that most figures are about."""
    return [self.title(PRETRAINED), self.title(FT)]

  def numbers(self, title: str, calibration: str = NONE) -> Row | None:
    """The numbers of a row of the table or of the study per block; None where there is none."""
    row = self.row(title, calibration)
    return None if row is None else row["numbers"]

  def row(self, title: str, calibration: str = NONE) -> Row | None:
    """A row of the table or of the study per block; None where there is none."""
    for row in (*self.body["table"], *self.body["blocks"]):
      if row["title"] == title and row["calibration"] == calibration:
        return row
    return None

  def against(self, row: Row, reference: str, name: str) -> estimate_lib.Estimate | None:
    """The difference of a row of the tables from the source model or from fine-tuning as it is.

    Args:
      row: of the table or of the study per block.
      reference: "pretrained" or "ft".
      name: "Y/Y", "S/Y", "U/Y" or "AUSUC".

    Returns:
      With its 95 % interval; None where the record has none.
    """
    found = row.get("against", {}).get(reference)
    return estimate_lib.Estimate(*found[name]) if found else None

  def is_oracle(self, title: str) -> bool:
    """Whether a method of the table saw absent classes in its training."""
    return any(
      row["oracle"]
      for row in self.body["table"]
      if row["title"] == title and row["calibration"] == NONE
    )

  def networks(self, use: str | None = None, method: str | None = None) -> list[Row]:
    """The networks of a use and method, those that diverged left out."""
    return [
      network
      for network in self.body["networks"]
      if (use is None or network["use"] == use)
      and (method is None or network["method"] == method)
      and network["epochs"]
    ]

  def partition(self, network: Row) -> Row:
    """Which classes a network saw."""
    number = network["partition"]
    return next(p for p in self.body["partitions"] if p["id"] == number)

  def absent(self, partition: Row) -> np.ndarray:
    """[C] bool."""
    mask = np.zeros(len(self.class_names), bool)
    mask[partition["absent"]] = True
    return mask

  def arrays(self, file: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some arrays of a file that the record names.

    Raises:
      FileNotFoundError, ValueError: the file is missing or damaged, or lacks one of `names`.
    """
    path = self.workdir / file
    if not path.resolve().is_relative_to(self.workdir.resolve()):
      raise ValueError(f"the record names a file {file!r}, outside of {self.workdir}.")
    return files.read_npz(path, "which the record names", names)

  def curves(self, method: str) -> list[Curve]:
    """The exact seen-unseen curve of the last epoch, per seed."""
    from subtune_jax import calibration  # needs jax, which a report is read without

    found = []
    for network in self.networks(PRETRAINED if method == PRETRAINED else "main", method):
      stored = self.arrays(network["epochs"][-1]["file"], ("test/logits", "test/labels"))
      curve = calibration.seen_unseen_curve(
        stored["test/logits"], stored["test/labels"], self.absent(self.partition(network))
      )
      found.append(Curve(*map(np.asarray, (curve.thresholds, curve.seen, curve.unseen))))
    return found

  def along(self) -> dict[str, list[list[Row]]]:
    """Method -> per seed its epochs, the source model as epoch 0: those read after every epoch."""
    start = {network["seed"]: network["epochs"][-1] for network in self.networks(PRETRAINED)}
    found: dict[str, list[list[Row]]] = {}
    for network in self.networks("main"):
      if len(network["epochs"]) > 1:
        rows = [start[network["seed"]], *network["epochs"]]
        found.setdefault(network["method"], []).append(rows)
    return found

  def common(self, seed: int) -> np.ndarray:
    """[C] bool: the classes that are absent from every partition of a seed."""
    own = [self.absent(p) for p in self.body["partitions"] if p["seed"] == seed]
    return np.logical_and.reduce(own)


def of(record: Any, workdir: str | os.PathLike) -> Study:
  """The study of a record.

  Raises:
    ValueError: it is not the record of a study of holistic transfer.
  """
  where = f"{pathlib.Path(workdir) / fields.RESULTS}"
  fields.check_record(record, Record, where, "holistic_transfer")
  methods = [row["method"] for row in record["holistic"]["table"]]
  for method in (PRETRAINED, FT):
    fields.check_one_of(method, methods, f"{where}: a method that the table needs")
  return Study(record, pathlib.Path(workdir))


def load(workdir: str | os.PathLike) -> Study:
  """The study in a workdir. Raises: see `fields.read` and `of`."""
  return of(fields.read(workdir), workdir)


def values(trainings: Sequence[Sequence[Row]], read: Callable[[Row], float | None]) -> np.ndarray:
  """[trainings, epochs] of a number after every epoch; nan where there is none."""
  length = min(map(len, trainings))
  return np.array([[fields.number(read(e)) for e in epochs[:length]] for epochs in trainings])


def mean_curve(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
  """(mean Acc_S/Y, mean Acc_U/Y) over seeds at every gamma, the same for all seeds.

  >>> one = Curve(np.array([1.0]), np.array([0.8, 0.0]), np.array([0.0, 0.6]))
  >>> mean_curve([one, one._replace(thresholds=np.array([2.0]))])
  (array([0.8, 0.4, 0. ]), array([0. , 0.3, 0.6]))
  """
  gammas = np.unique(np.concatenate([curve.thresholds for curve in curves]))
  places = [np.searchsorted(curve.thresholds, gammas, side="right") for curve in curves]
  places = [np.concatenate([[0], place]) for place in places]
  seen, unseen = (
    np.mean([getattr(c, name)[p] for c, p in zip(curves, places, strict=True)], axis=0)
    for name in ("seen", "unseen")
  )
  return seen, unseen
