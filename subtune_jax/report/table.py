"""The final table: accuracies with intervals, differences from a reference, and what they cost.

`summarize` does the statistics once; the terminal, the page and the figures all show its numbers.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math
import textwrap

import numpy as np

from subtune_jax.report import explosion, intervals, records

MEAN_OOD = "mean OOD"
HIGHER, LOWER, UNDECIDED = "higher", "lower", "undecided"
EDGE_MARK = "!"
WIDTH = 118
_GAP = "  "


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean and the ends of its 95 % interval, as fractions (not per cent)."""

  mean: float
  low: float
  high: float

  @property
  def half_width(self) -> float:
    return (self.high - self.low) / 2

  @property
  def verdict(self) -> str:
    """Of a difference: "higher" or "lower" if the interval excludes 0, else "undecided"."""
    if self.low > 0:
      return HIGHER
    return LOWER if self.high < 0 else UNDECIDED


@dataclasses.dataclass(frozen=True)
class Column:
  """One accuracy: of a test set, or the mean over the out-of-distribution ones."""

  key: str
  title: str
  tests: tuple[str, ...]
  in_distribution: bool


@dataclasses.dataclass(frozen=True)
class Row:
  """What one method scored and cost; means over its chosen trainings.

  Attributes:
    name: of the method.
    title: of the method.
    accuracy: per column key.
    trained_params: parameters trained in its largest stage.
    seconds: wall time of one training.
    compile_seconds: time of one training spent compiling.
    setting: which number was chosen on the validation split: "learning_rate" or "l2".
    value: the value chosen.
    at_edge: whether it is the first or last value tried, so that a better one may lie outside.
    moved: |theta - theta0| / |theta0| over the backbone, a fraction.
  """

  name: str
  title: str
  accuracy: Mapping[str, Estimate]
  trained_params: int
  seconds: float
  compile_seconds: float
  setting: str
  value: float
  at_edge: bool
  moved: float


@dataclasses.dataclass(frozen=True)
class Summary:
  """All numbers of the report.

  Attributes:
    columns: accuracies, the in-distribution one first.
    rows: methods, in the order of the record.
    reference: method that the others are compared with; None if the run has not got it.
    differences: per method other than the reference and column key, its accuracy minus the
      reference's.
    leaders: per column key the method of highest mean and all those whose difference from it is
      undecided. More than one name: there is no winner.
    num_seeds: trainings per method.
    trained_once: methods with one training only, because another seed would give the same.
    sizes: per test set (images, concepts).
    num_resamples: of the bootstrap.
    unstable: sentences on trainings that diverged or exploded.
  """

  columns: tuple[Column, ...]
  rows: tuple[Row, ...]
  reference: str | None
  differences: Mapping[str, Mapping[str, Estimate]]
  leaders: Mapping[str, tuple[str, ...]]
  num_seeds: int
  trained_once: tuple[str, ...]
  sizes: Mapping[str, tuple[int, int]]
  num_resamples: int
  unstable: tuple[str, ...] = ()

  @property
  def titles(self) -> dict[str, str]:
    return {row.name: row.title for row in self.rows}

  def winner(self, column: str) -> str | None:
    """The method that is above all others in `column`, None while that is undecided."""
    leaders = self.leaders[column]
    return leaders[0] if len(leaders) == 1 else None


def columns(run: records.Run) -> tuple[Column, ...]:
  """The accuracies of a run: in distribution, each other domain, and the mean over those."""
  data = run.record["data"]
  short = records.short_names(list(run.tests))
  ood = tuple(name for name in run.tests if name != data["id"])
  found = [Column(data["id"], f"{short[data['id']]} (ID)", (data["id"],), True)]
  found += [Column(name, short[name], (name,), False) for name in ood]
  if len(ood) > 1:
    found.append(Column(MEAN_OOD, MEAN_OOD, ood, False))
  return tuple(found)


def _scores(run: records.Run, column: Column) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Per method scores [num_seeds, num_examples] whose mean is the column's accuracy; groups.

  A mean over domains is `equal_weights`.
  """
  tests = [run.tests[name] for name in column.tests]
  correct = [{method: test.correct(method) for method in run.methods} for test in tests]
  return equal_weights(correct, [test.groups for test in tests])


def equal_weights(
  correct: Sequence[Mapping[str, np.ndarray]], groups: Sequence[np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Scores whose mean gives every test set the same weight, however many images it has.

  A concept that several sets show is one group, drawn in all of them together.

  Args:
    correct: of each set, method -> [num_seeds, n] right answers.
    groups: of each set, [n] concepts.

  Returns:
    (method -> [num_seeds, images of all sets], their concepts).
  """
  total = sum(map(len, groups))
  weights = [total / (len(groups) * len(own)) for own in groups]
  scores = {
    method: np.concatenate(
      [w * own[method] for w, own in zip(weights, correct, strict=True)], axis=1
    )
    for method in correct[0]
  }
  return scores, np.concatenate(groups)


def _mean(values: Sequence[float | None]) -> float:
  return float(np.mean([records.number(value) for value in values]))


def _row(run: records.Run, name: str, accuracy: Mapping[str, Estimate]) -> Row:
  method, chosen = run.method(name), run.chosen(name)
  return Row(
    name=name,
    title=method["title"],
    accuracy=accuracy,
    trained_params=method["trained_params"],
    seconds=_mean([t["seconds"] for t in chosen]),
    compile_seconds=_mean([t["compile_seconds"] for t in chosen]),
    setting=method["setting"],
    value=method["learning_rate"],
    at_edge=method["grid_edge"],
    moved=_mean([t["moved"] for t in chosen]),
  )


def _estimates(
  run: records.Run, column: Column, reference: str | None, num_resamples: int
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
  """Per method its accuracy, and per other method the difference from the reference."""
  scores, groups = _scores(run, column)
  found = intervals.paired_bootstrap(
    scores, groups, reference=reference, num_resamples=num_resamples
  )
  accuracy = {m: Estimate(found.means[m], *found.intervals[m]) for m in scores}
  return accuracy, {m: Estimate(*values) for m, values in found.differences.items()}


def _leaders(
  run: records.Run, column: Column, accuracy: Mapping[str, Estimate], num_resamples: int
) -> tuple[str, ...]:
  """The method of highest mean, then those whose difference from it is undecided."""
  order = sorted(accuracy, key=lambda m: -accuracy[m].mean)
  _, differences = _estimates(run, column, order[0], num_resamples)
  return (order[0], *(m for m in order[1:] if differences[m].verdict == UNDECIDED))


def summarize(run: records.Run, *, reference: str = "lp", num_resamples: int = 2000) -> Summary:
  """All numbers of the report.

  Args:
    run: a checked run.
    reference: the method that the others are compared with; a run without it has no differences.
    num_resamples: of the bootstrap.
  """
  reference = reference if reference in run.methods else None
  accuracy = {method: {} for method in run.methods}
  differences = {method: {} for method in run.methods if reference and method != reference}
  leaders = {}
  for column in columns(run):
    means, against = _estimates(run, column, reference, num_resamples)
    leaders[column.key] = _leaders(run, column, means, num_resamples)
    for method in run.methods:
      accuracy[method][column.key] = means[method]
    for method in differences:
      differences[method][column.key] = against[method]
  sizes = {name: (len(t.labels), len(np.unique(t.groups))) for name, t in run.tests.items()}
  return Summary(
    columns=columns(run),
    rows=tuple(_row(run, method, accuracy[method]) for method in run.methods),
    reference=reference,
    differences=differences,
    leaders=leaders,
    num_seeds=len(run.seeds),
    trained_once=tuple(m for m in run.methods if len(run.chosen(m)) < len(run.seeds)),
    sizes=sizes,
    num_resamples=num_resamples,
    unstable=tuple(explosion.lines(run.record)),
  )


def parameters(count: int) -> str:
  """57645 -> "57.6 k", 3371025 -> "3.37 M"."""
  for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
    if count >= scale:
      value = count / scale
      return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
  return str(count)


def setting_value(value: float) -> str:
  """A learning rate or a strength, short: 0.0003 -> "3e-4", 0.03 -> "0.03"."""
  if value == 0 or 0.01 <= abs(value) < 1000:
    return f"{value:.3g}"
  mantissa, exponent = f"{value:.1e}".split("e")
  return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def setting_name(setting: str) -> str:
  return {"learning_rate": "lr"}.get(setting, setting)


def percent(value: float, digits: int = 1) -> str:
  return "n/a" if math.isnan(value) else f"{100 * value:.{digits}f}"


def seconds(value: float) -> str:
  return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _moved(value: float) -> str:
  return "0" if value == 0 else f"{percent(value, 2)} %"


def _row_setting(row: Row) -> str:
  flag = f" {EDGE_MARK}" if row.at_edge else "  "
  return f"{setting_name(row.setting)} {setting_value(row.value)}{flag}"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
  """Columns of text, the first to the left; those past `width` go to a further table below.

  A cell may hold several lines.
  """
  cells = [[cell.split("\n") for cell in row] for row in [header, *rows]]
  widths = [max(len(line) for row in cells for line in row[i]) for i in range(len(header))]
  tables, room = [[0]], width - widths[0]
  for i in range(1, len(header)):
    if room < widths[i] + len(_GAP) and len(tables[-1]) > 1:
      tables.append([0])
      room = width - widths[0]
    tables[-1].append(i)
    room -= widths[i] + len(_GAP)
  return "\n\n".join(_grid_text(cells, widths, chosen) for chosen in tables)


def _grid_text(
  cells: Sequence[Sequence[Sequence[str]]], widths: Sequence[int], chosen: Sequence[int]
) -> str:
  lines = []
  for number, row in enumerate(cells):
    for i in range(max(len(row[c]) for c in chosen)):
      texts = [row[c][i] if i < len(row[c]) else "" for c in chosen]
      first, *rest = (
        t.rjust(widths[c]) if c else t.ljust(widths[c]) for c, t in zip(chosen, texts, strict=True)
      )
      lines.append(_GAP.join([first, *rest]).rstrip())
    if number == 0:
      lines.append("-" * (sum(widths[c] for c in chosen) + len(_GAP) * (len(chosen) - 1)))
  return "\n".join(lines)


def _accuracy_table(summary: Summary, width: int) -> str:
  header = ["test accuracy, %", *(c.title for c in summary.columns)]
  header += ["trained", "seconds", "setting  ", "moved"]
  rows = []
  for row in summary.rows:
    scores = [row.accuracy[c.key] for c in summary.columns]
    cells = [_short(row.title), *(f"{percent(s.mean)} ±{100 * s.half_width:4.1f}" for s in scores)]
    cells += [parameters(row.trained_params), seconds(row.seconds), _row_setting(row)]
    rows.append([*cells, _moved(row.moved)])
  return grid(header, rows, width)


def _short(title: str, length: int = 19) -> str:
  return title if len(title) <= length else title[: length - 3].rstrip() + "..."


def difference_text(estimate: Estimate) -> str:
  """ "+4.2 [+1.1, +7.3]", in points."""
  mean, low, high = (100 * v for v in (estimate.mean, estimate.low, estimate.high))
  return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _difference_table(summary: Summary, width: int) -> str:
  header = ["difference, points", *(c.title for c in summary.columns)]
  rows = []
  for name, differences in summary.differences.items():
    these = [differences[c.key] for c in summary.columns]
    texts = [f"{difference_text(d)}\n{d.verdict}" for d in these]
    rows.append([_short(summary.titles[name]), *texts])
  return grid(header, rows, width)


def leaders_text(summary: Summary) -> list[str]:
  """Per column a sentence: the method above all others, or those between which it is undecided."""
  lines = []
  for column in summary.columns:
    names = [_short(summary.titles[name]) for name in summary.leaders[column.key]]
    if len(names) > 1:
      lines.append(f"{column.title}: undecided between {', '.join(names)}")
    else:
      lines.append(f"{column.title}: {names[0]}")
  return lines


def sizes_text(summary: Summary) -> str:
  """How many images and concepts the test sets have, in one phrase."""
  if len(set(summary.sizes.values())) == 1:
    images, concepts = next(iter(summary.sizes.values()))
    where = " in each domain" if len(summary.sizes) > 1 else ""
    return f"{images} test images of {concepts} concepts{where}"
  short = records.short_names(list(summary.sizes))
  parts = [f"{short[n]} {i} images of {g} concepts" for n, (i, g) in summary.sizes.items()]
  return "test sets: " + ", ".join(parts)


def interval_text(summary: Summary) -> str:
  """What the 95 % intervals carry and what they leave out."""
  if summary.num_seeds > 1:
    drawn = f"test concepts and over the {summary.num_seeds} seeds"
    carries = (
      "They carry the chance in which concepts were tested and in the seeds of the trainings "
      f"({summary.num_seeds} seeds show that second part only roughly)"
    )
  else:
    drawn = "test concepts"
    carries = (
      "They carry the chance in which concepts were tested; with one seed they say nothing "
      "about another training of the same method"
    )
  return (
    f"95 % intervals by a paired bootstrap over {drawn} ({summary.num_resamples:,} resamples; a "
    f"concept is drawn with all its images, the same draw for every method). {carries}. They leave "
    "out another training set, another choice of the setting and another backbone, and each "
    "stands for itself: many comparisons at once need wider ones."
  )


def seeds_text(summary: Summary) -> str:
  """ "3 seeds per method", with the exceptions."""
  text = f"{summary.num_seeds} seed{'s' if summary.num_seeds > 1 else ''} per method"
  if summary.trained_once:
    text += f" (one: {', '.join(_short(summary.titles[m]) for m in summary.trained_once)})"
  return text


def _notes(summary: Summary, width: int) -> list[str]:
  wrap = functools.partial(textwrap.wrap, width=min(width, 100), subsequent_indent="  ")
  lines = wrap(
    f"{seeds_text(summary)}; {sizes_text(summary)}. ± is half the width of the 95 % interval."
  )
  lines += wrap(interval_text(summary))
  lines += wrap(
    "trained: parameters of the largest stage. seconds: of one training. setting: chosen on the "
    "validation split. moved: |theta - theta0| / |theta0| over the backbone."
  )
  if any(row.at_edge for row in summary.rows):
    lines += wrap(f"{EDGE_MARK} setting at the edge of its grid: a better one may lie past it.")
  for line in summary.unstable:
    lines += wrap(line)
  return lines


def format_table(summary: Summary, *, width: int = WIDTH) -> str:
  """The tables and what they mean, as plain text for a terminal of `width` columns."""
  parts = [_accuracy_table(summary, width)]
  if summary.differences:
    title = f"Against {summary.titles[summary.reference]}, with 95 % intervals"
    parts.append(f"{title}\n\n{_difference_table(summary, width)}")
  if len(summary.rows) > 1:
    lines = [
      textwrap.fill(line, min(width, 100), initial_indent="  ", subsequent_indent="    ")
      for line in leaders_text(summary)
    ]
    parts.append("\n".join(["Highest accuracy", *lines]))
  parts.append("\n".join(_notes(summary, width)))
  return "\n\n".join(parts) + "\n"
