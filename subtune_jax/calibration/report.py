"""From files of logits to the table, the record and the figure of one calibration."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
from typing import TYPE_CHECKING, Any
import zipfile

import numpy as np

from subtune_jax.calibration import accuracy, arrays, checks, resampling
from subtune_jax.calibration import curve as curve_lib
from subtune_jax.calibration import gamma as gamma_lib

if TYPE_CHECKING:
  from matplotlib.figure import Figure

COLUMNS = ("Y/Y", "S/Y", "U/Y", "S/S", "U/U", "AUSUC")


@dataclasses.dataclass(frozen=True)
class Outputs:
  """What a model said about labelled examples.

  Attributes:
    logits: [N, C].
    labels: [N].
    absent: [C], boolean, or None where the file has none.
    class_names: C names, or None.
    groups: [N] examples with the same one are not independent, or None.
  """

  logits: np.ndarray
  labels: np.ndarray
  absent: np.ndarray | None = None
  class_names: tuple[str, ...] | None = None
  groups: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Report:
  """One gamma, and what it does to test data.

  Attributes:
    gamma: the one in use.
    source: where it comes from: "alg" or "given".
    gamma_star: the best one on the test data: an oracle.
    rows: name -> accuracies and AUSUC under `COLUMNS`; "before", "after" and "oracle".
    intervals: name -> "Y/Y", "S/Y", "U/Y", "AUSUC" -> (low, high): 95 % intervals by a bootstrap
      over test examples or their groups, every gamma held. Empty where it was not asked for.
    harmonic_mean: the best harmonic mean of Acc_S/Y and Acc_U/Y over all gamma: an oracle.
    absent: indices of the absent classes.
    absent_names: their names, or None.
    num_train: training examples behind gamma (0 where it was given).
    num_test: test examples.
    curve: of the test data.
  """

  gamma: float
  source: str
  gamma_star: float
  rows: dict[str, dict[str, float]]
  intervals: dict[str, dict[str, tuple[float, float]]]
  harmonic_mean: float
  absent: tuple[int, ...]
  absent_names: tuple[str, ...] | None
  num_train: int
  num_test: int
  curve: curve_lib.Curve

  def record(self) -> dict[str, Any]:
    """The report without its curve, as plain Python for JSON."""
    fields = [f.name for f in dataclasses.fields(self) if f.name != "curve"]
    return {name: getattr(self, name) for name in fields}


def load(path: str | os.PathLike) -> Outputs:
  """Reads an npz with `logits` and `labels`, and perhaps `absent`, `class_names` and `groups`.

  Raises:
    ValueError: no npz, fields missing or of the wrong shape; see `checks`.
    OSError: no such file.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      fields = {name: file[name] for name in file.files}
  except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as e:
    raise ValueError(f"{path} is no npz of plain arrays: write it by np.savez(...)") from e
  missing = [name for name in ("logits", "labels") if name not in fields]
  if missing:
    raise ValueError(f"{path} has no {' and no '.join(missing)}: it holds {sorted(fields)}")
  try:
    logits: Any = checks.logits(fields["logits"])
    labels: Any = checks.labels(fields["labels"], *logits.shape)
    absent = fields.get("absent")
    if absent is not None:
      checks.mask(absent, logits.shape[1])
  except ValueError as e:
    raise ValueError(f"{path}: {e}") from e
  names = fields.get("class_names")
  names = None if names is None else tuple(map(str, names.reshape(-1)))
  if names is not None and len(names) != logits.shape[1]:
    raise ValueError(f"{path}: {len(names)} class_names for {logits.shape[1]} classes")
  groups = fields.get("groups")
  if groups is not None and groups.shape != labels.shape:
    raise ValueError(f"{path}: groups has the shape {groups.shape}, labels {labels.shape}")
  return Outputs(logits, labels, absent, names, groups)


def absent_mask(given: Sequence[str], num_classes: int, names: Sequence[str] | None) -> np.ndarray:
  """The mask of classes given by name or index.

  Args:
    given: names or indices; a name comes first where a class is named by a number.
    num_classes: C.
    names: of the classes, or None.

  Returns:
    [C], boolean.

  Raises:
    ValueError: something that is neither.
  """
  mask = np.zeros(num_classes, bool)
  names = list(names or ())
  for word in given:
    if word in names:
      mask[[i for i, name in enumerate(names) if name == word]] = True
    elif word.isdecimal() and int(word) < num_classes:
      mask[int(word)] = True
    else:
      known = f"a name ({', '.join(names[:5])}, ...) or " if names else ""
      raise ValueError(
        f"absent class {word!r} is unknown: give {known}an index in 0..{num_classes - 1}"
      )
  checks.mask(mask, num_classes)
  return mask


def find_absent(train: Outputs | None, test: Outputs, given: Sequence[str] | None) -> np.ndarray:
  """The absent classes: as given, else of the files, else those without a training label.

  Raises:
    ValueError: files that contradict each other; nothing to go by.
  """
  num_classes = test.logits.shape[1]
  files = [outputs for outputs in (train, test) if outputs is not None]
  if train is not None and train.logits.shape[1] != num_classes:
    raise ValueError(
      f"the training logits have {train.logits.shape[1]} classes, the test logits {num_classes}"
    )
  names = [outputs.class_names for outputs in files if outputs.class_names is not None]
  if len(set(names)) > 1:
    raise ValueError("the class_names of the training and the test file differ")
  if given is not None:
    return absent_mask(given, num_classes, names[0] if names else None)
  masks = [outputs.absent for outputs in files if outputs.absent is not None]
  if masks:
    if not all((mask == masks[0]).all() for mask in masks):
      raise ValueError("the absent masks of the training and the test file differ")
    return masks[0]
  if train is None:
    raise ValueError("the absent classes are unknown: give them, or training logits")
  mask = ~np.isin(np.arange(num_classes), train.labels)
  if not mask.any():
    raise ValueError(
      f"every one of the {num_classes} classes has training labels, so none is absent: name the "
      "absent classes, and drop their rows from the training logits"
    )
  checks.mask(mask, num_classes)
  return mask


def summarize(
  train: Outputs | None,
  test: Outputs,
  gamma: arrays.Number | None = None,
  absent: Sequence[str] | None = None,
  num_resamples: int = 2000,
) -> Report:
  """Chooses gamma and measures it on test data.

  Args:
    train: on fine-tuning training data; needed for ALG.
    test: on test data.
    gamma: in logits; None for ALG.
    absent: names or indices of the absent classes; None to find them by `find_absent`.
    num_resamples: of the test examples, for the intervals; 0 for none.

  Raises:
    ValueError: as of `average_logit_gap` and `seen_unseen_curve`; ALG without training data.
  """
  mask = find_absent(train, test, absent)
  source = "alg" if gamma is None else "given"
  if gamma is None:
    if train is None:
      raise ValueError("ALG needs the logits of the fine-tuning training data")
    gamma = gamma_lib.average_logit_gap(train.logits, train.labels, mask)
  curve = curve_lib.seen_unseen_curve(test.logits, test.labels, mask)
  star = float(curve.best_gamma())
  area = float(curve.ausuc())  # gamma moves along the curve and leaves it as it is
  rows, gammas = {}, {"before": 0.0, "after": gamma, "oracle": star}
  for name, value in gammas.items():
    logits = gamma_lib.calibrate(test.logits, mask, value)
    table = accuracy.accuracy_table(logits, test.labels, mask)
    rows[name] = {cell: float(value) for cell, value in table.items()} | {"AUSUC": area}
  names = test.class_names or (train.class_names if train else None)
  indices = tuple(np.flatnonzero(mask).tolist())
  return Report(
    gamma=float(gamma),
    source=source,
    gamma_star=star,
    rows=rows,
    intervals=_intervals(test, mask, gammas, num_resamples) if num_resamples else {},
    harmonic_mean=float(curve.best_harmonic_mean()[0]),
    absent=indices,
    absent_names=tuple(names[i] for i in indices) if names else None,
    num_train=len(train.labels) if train and source == "alg" else 0,
    num_test=len(test.labels),
    curve=curve,
  )


def _intervals(
  test: Outputs, mask: np.ndarray, gammas: Mapping[str, arrays.Number], num_resamples: int
) -> dict[str, dict[str, tuple[float, float]]]:
  judged = resampling.judge(test.logits, test.labels, mask, tuple(gammas.values()))
  found = resampling.intervals(judged, groups=test.groups, num_resamples=num_resamples)
  return {
    row: {name: (each.low, each.high) for name, each in numbers.items()}
    for row, numbers in zip(gammas, found, strict=True)
  }


def format_table(report: Report) -> str:
  """The report as a table of percentages; under each row its intervals."""
  titles = {
    "before": "before (gamma 0)",
    "after": f"after (gamma {report.gamma:.4g}, {report.source})",
    "oracle": f"oracle: gamma* {report.gamma_star:.4g}, chosen on the test data",
  }
  width = max(map(len, titles.values()))
  head = f"{len(report.absent)} absent classes, {report.num_test} test examples, accuracies in %"
  lines = [head, " " * width + _line(COLUMNS)]
  for name, row in report.rows.items():
    lines.append(f"{titles[name]:<{width}}" + _line([f"{100 * row[c]:.1f}" for c in COLUMNS]))
    ends = report.intervals.get(name, {})
    if ends:
      texts = [f"{100 * ends[c][0]:.1f}-{100 * ends[c][1]:.1f}" if c in ends else ""
               for c in COLUMNS]  # fmt: skip
      lines.append(f"{'  95 % interval':<{width}}" + _line(texts).rstrip())
  return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
  return "".join(f"{cell:>12}" for cell in cells)


def draw(report: Report) -> "Figure":
  """The seen-unseen curve with the three points of the table, as a matplotlib Figure."""
  from matplotlib import figure
  from matplotlib.backends import backend_agg

  made = figure.Figure(figsize=(5, 5), layout="constrained")
  backend_agg.FigureCanvasAgg(made)
  axes = made.subplots()
  axes.plot(100 * report.curve.seen, 100 * report.curve.unseen, color="#0072B2")
  marks = {
    "before": ("before", "o", "#000000"),
    "after": (f"gamma {report.gamma:.3g} ({report.source})", "D", "#009E73"),
    "oracle": (f"gamma* {report.gamma_star:.3g} (oracle)", "*", "#D55E00"),
  }
  for name, row in report.rows.items():
    label, marker, color = marks[name]
    point = 100 * row["S/Y"], 100 * row["U/Y"]
    axes.plot(*point, marker, color=color, markersize=9, label=label, linestyle="none")
  axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
  axes.set(xlabel="accuracy on seen classes, Acc S/Y (%)")
  axes.set(ylabel="accuracy on absent classes, Acc U/Y (%)")
  axes.set_title(f"AUSUC {report.rows['before']['AUSUC']:.3f}", fontsize=10)
  axes.grid(True, color="#DDDDDD", linewidth=0.8)
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(loc="lower left", fontsize=8.5, frameon=False)
  return made
