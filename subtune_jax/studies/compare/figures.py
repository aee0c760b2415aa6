"""The figures of a comparison of methods, drawn from its compare_record."""

from collections.abc import Mapping, Sequence
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from subtune_jax.report import block_strip, charts, marks, style, words
from subtune_jax.statistics import criteria
from subtune_jax.studies import fields
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import summary as summary_lib

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_LINE = 0.175  # inches, of text below an image
_PER_ROW = 4
_LABELS = {"learning_rate": "learning rate", "l2": "L2 strength"}


def accuracy_bars(run: compare_record.Run, summary: summary_lib.Summary) -> "Figure":
  """Test accuracy of every method on every domain: bars, 95 % intervals, one dot per seed."""
  columns, count, colors = summary.columns, len(run.methods), style.colors(run.methods)
  xs, width, upright = _column_places(summary), 0.82 / count, count <= 5
  figure, (axes,) = charts.panels(1, min(max(9.5, 0.42 * (count + 1) * len(columns)), 15), 4.6)
  for i, row in enumerate(summary.rows):
    for x, column in zip(xs, columns, strict=True):
      value = row.accuracy[column.key]
      seeds = np.mean([run.tests[t].correct(row.name).mean(1) for t in column.tests], axis=0)
      marks.bar(
        axes, x + (i - (count - 1) / 2) * width, 100 * value.mean, 0.92 * width, colors[row.name],
        seeds=100 * seeds, ends=(100 * value.low, 100 * value.high), text=f"{100 * value.mean:.1f}",
        rotation=0 if upright else 90,
      )  # fmt: skip
  axes.set_xticks(xs, [charts.plain(c.title) for c in columns])
  for j, column in enumerate(columns[1:], start=1):
    if column.in_distribution != columns[j - 1].in_distribution:
      middle = (xs[j] + xs[j - 1]) / 2
      axes.axvline(middle, color=style.MUTED, linewidth=0.8, linestyle=style.DASHED)
  axes.set_xlim(xs[0] - 0.55, xs[-1] + 0.55)
  top = max(score.high for row in summary.rows for score in row.accuracy.values())
  axes.set_ylim(0, 100 * max(top, 0.01) * (1.1 if upright else 1.18))
  axes.tick_params(axis="x", length=0)
  charts.label(axes, y="test accuracy, %")
  charts.legend(figure, [(marks.bar_key(colors[m]), run.titles[m]) for m in run.methods])
  return figure


def _column_places(summary: summary_lib.Summary) -> list[float]:
  """Where the bars of columns stand: a gap after the in-distribution one, and before the mean."""
  keys = [column.key for column in summary.columns]
  mean = keys.index(summary_lib.MEAN_OOD) if summary_lib.MEAN_OOD in keys else len(keys)
  return [i + (0.3 if i else 0) + (0.15 if i >= mean else 0) for i in range(len(keys))]


def _stage_offsets(histories: Sequence[Sequence[Mapping[str, Any]]]) -> dict[int, float]:
  """Per stage the epochs before it, over all seeds, so that stages stand one behind the other."""
  rows = [row for history in histories for row in history]
  offsets, before = {}, 0.0
  for stage in sorted({row["stage"] for row in rows}):
    epochs = [row["epoch"] for row in rows if row["stage"] == stage]
    offsets[stage] = before + (1 if min(epochs) == 0 else 0)
    before = offsets[stage] + max(epochs)
  return offsets


def learning_curves(run: compare_record.Run) -> "Figure | None":
  """Validation accuracy and training loss by epoch: a column per method, its stages marked."""
  histories = {m: [t["history"] for t in run.chosen(m) if t["history"]] for m in run.methods}
  histories = {method: own for method, own in histories.items() if own}
  if not histories:
    return None
  columns = min(len(histories), _PER_ROW)
  bands = math.ceil(len(histories) / columns)
  figure = charts.new_figure(max(2.9 * columns, 5.5), 4.9 * bands)
  every = figure.subplots(2 * bands, columns, squeeze=False)
  panels = list(zip(every[::2].ravel(), every[1::2].ravel(), strict=True))
  for accuracy, loss in panels[len(histories) :]:
    accuracy.remove()
    loss.remove()
  for index, ((method, own), (accuracy, loss)) in enumerate(
    zip(histories.items(), panels, strict=False)
  ):
    accuracy.sharey(every[0, 0])
    loss.sharey(every[1, 0])
    loss.sharex(accuracy)
    look, left = style.looks(run.methods)[method], index % columns == 0
    _draw_curves(accuracy, own, "validation_accuracy", 100.0, *look)
    _draw_curves(loss, own, "train_loss", 1.0, *look)
    title = words.shorten(run.titles[method], 30)
    charts.label(accuracy, title, y="validation accuracy, %" if left else "", noted=True)
    charts.label(loss, x="epoch", y="training loss" if left else "")
    marks.stages((accuracy, loss), _spans(own, run.method(method)["stages"], accuracy))
    accuracy.tick_params(labelbottom=False, labelleft=left)
    loss.tick_params(labelleft=left)
  return figure


def _draw_curves(axes, histories, key: str, scale: float, color: str, marker) -> None:
  """A number by epoch, stages one behind the other; of one or two epochs with markers."""
  last = 0.0
  for stage, before in _stage_offsets(histories).items():
    curves = [{before + row["epoch"]: scale * fields.number(row[key])
               for row in history if row["stage"] == stage} for history in histories]  # fmt: skip
    xs = sorted({x for curve in curves for x in curve})
    values = np.array([[curve.get(x, math.nan) for x in xs] for curve in curves])
    marks.lines(axes, xs, values, color, marker if len(xs) < 3 else "")
    last = max([last, *xs])
  axes.set_xlim(0, last * 1.04 if last > 2 else last + 1)
  axes.locator_params(axis="x", integer=True, nbins=6)


def _spans(histories, stages: Sequence[Mapping[str, Any]], axes) -> list[tuple[str, float, float]]:
  """Title, begin and end of each stage; a single one takes the whole axis."""
  offsets, found = _stage_offsets(histories), []
  for stage, begin in offsets.items():
    last = max(row["epoch"] for own in histories for row in own if row["stage"] == stage)
    title = stages[stage]["title"] if 0 <= stage < len(stages) else f"stage {stage}"
    found.append((title, begin, begin + last) if len(offsets) > 1 else (title, *axes.get_xlim()))
  return found


def setting_grids(run: compare_record.Run) -> "Figure | None":
  """What choices went by at every learning rate (or strength) tried, per method."""
  methods = [m for m in run.methods if len(run.method(m)["grid"]) > 1]
  if not methods:
    return None
  criterion, columns = criteria.of(run.record["config"]), min(len(methods), _PER_ROW)
  figure, panels = charts.panels(
    len(methods), max(2.9 * columns, 5.5), 3.3, per_row=columns, sharey=True
  )
  upright = max(len(run.method(method)["grid"]) for method in methods) <= 4
  for index, (axes, method) in enumerate(zip(panels, methods, strict=True)):
    look, entry = style.looks(run.methods)[method], run.method(method)
    _draw_grid(axes, entry, criterion, *look, rotation=0 if upright else 45)
    charts.label(
      axes, words.shorten(entry["title"], 30), x=_LABELS.get(entry["setting"], entry["setting"]),
      y=criterion.label if index % columns == 0 else "", noted=True,
    )  # fmt: skip
  return figure


def _draw_grid(axes, entry, criterion: criteria.Criterion, color: str, marker, **turn) -> None:
  """The criterion by setting, the one that was chosen in a ring."""
  points = sorted(entry["grid"], key=lambda point: point["learning_rate"])
  values = [point["learning_rate"] for point in points]
  ys = [fields.number(criterion.shown(point)) for point in points]
  axes.plot(range(len(ys)), ys, color=color, marker=marker, markersize=5, linewidth=1.6)
  for place in (i for i, y in enumerate(ys) if math.isnan(y)):
    charts.note(axes, "diverged", (place, 0.03), xycoords=("data", "axes fraction"), rotation=90,
                ha="center", va="bottom", color=style.MUTED)  # fmt: skip
  near = min(range(len(values)), key=lambda i: abs(values[i] - entry["learning_rate"]))
  if math.isclose(values[near], entry["learning_rate"], rel_tol=1e-6):
    marks.ring(axes, near, ys[near])
  step = max(1, math.ceil(len(values) / 8))
  labels = [words.setting_value(v) if i % step == 0 else "" for i, v in enumerate(values)]
  axes.set_xticks(range(len(values)), labels, **turn)
  axes.set_xlim(-0.6, len(values) - 0.4)
  axes.margins(y=0.15)
  text, look = f"chosen: {words.setting_value(entry['learning_rate'])}", {"color": style.MUTED}
  if entry["grid_edge"]:
    text, look = f"{text}, at the edge of the grid", {"color": style.WARNING, "weight": "bold"}
  charts.note(axes, text, (0.5, 1.0), (0, 5), xycoords="axes fraction", ha="center", **look)


def trained_blocks(run: compare_record.Run) -> "Figure":
  """The network from input to head as a row of boxes per method and stage, coloured if trained."""
  backbone, colors = run.record["backbone"], style.colors(run.methods)
  rows = [
    block_strip.BlockRow(
      label=_stage_label(run, method["name"], number),
      blocks=compare_record.trained_blocks(stage, backbone),
      color=colors[method["name"]],
      note=f"{words.parameters(stage['trained_params'])} trained",
      gap=number == 0,
    )
    for method in run.record["methods"]
    for number, stage in enumerate(method["stages"])
  ]
  return block_strip.network(backbone, rows)


def _stage_label(run: compare_record.Run, name: str, stage: int) -> str:
  stages = run.method(name)["stages"]
  title = words.shorten(run.titles[name], 28)
  if len(stages) == 1:
    return title
  return f"{title}, stage {stage + 1}" if stage == 0 else f"stage {stage + 1}"


def example_images(
  run: compare_record.Run, name: str, stored: compare_record.TestImages, *, count: int = 12
) -> "Figure":
  """Images of the test set `name` with their class and what each method's first seed said.

  Args:
    run: the run.
    name: a test set.
    stored: images of it, with ids that the run's predictions are found by.
    count: how many are shown, evenly spaced over those stored.

  Raises:
    ValueError: an id is not one of the test set's.
  """
  test = run.tests[name]
  places = {id_: i for i, id_ in enumerate(test.ids)}
  unknown = [str(id_) for id_ in stored.ids if id_ not in places]
  if unknown:
    raise ValueError(f"images of {name!r} have ids {unknown[:5]} that its predictions have not.")
  count = min(count, len(stored.ids))
  picked = np.unique(np.linspace(0, len(stored.ids) - 1, count).round().astype(int))
  figure, tiles = image_tiles(stored.images[picked], len(run.methods))
  for stored_index, axes in zip(picked, tiles, strict=True):
    _label_example(run, test, places[stored.ids[stored_index]], axes)
  return figure


def image_tiles(images: np.ndarray, num_lines: int) -> "tuple[Figure, list[Axes]]":
  """Images [n, height, width, 3] side by side, with room for a title and lines below each."""
  per_row, side = min(6, len(images)), 1.5
  rows = math.ceil(len(images) / per_row)
  width, height = side + 0.4, 0.3 + side + _LINE * num_lines + 0.25
  figure = charts.new_figure(width * per_row, height * rows, layout="none")
  tiles = []
  for index, image in enumerate(images):
    row, column = divmod(index, per_row)
    left, bottom = column * width + 0.08, (rows - row) * height - 0.3 - side
    box = (left / (width * per_row), bottom / (height * rows))
    axes = figure.add_axes((*box, side / (width * per_row), side / (height * rows)))
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(style.GRID)
    tiles.append(axes)
  return figure, tiles


def label_tile(axes: "Axes", title: str, lines: Sequence[tuple[str, str]]) -> None:
  """A title above an image; below it lines of (text, colour)."""
  title = charts.plain(words.shorten(title, 22))
  axes.set_title(title, fontsize=charts.SIZE - 0.5, fontweight="bold", loc="left", pad=4)
  for number, (text, color) in enumerate(lines):
    charts.note(axes, text, (0, 0), (0, -5 - 72 * _LINE * number), xycoords="axes fraction",
                va="top", size=charts.SMALL - 0.5, color=color)  # fmt: skip


def _label_example(
  run: compare_record.Run, test: compare_record.TestSet, place: int, axes: "Axes"
) -> None:
  """The true class above an image; below it a line per method, right or wrong by symbol."""
  classes = run.record["data"]["class_names"]
  truth = int(test.labels[place])
  lines = []
  for method in run.methods:
    guess = int(test.predicted[method][0, place])
    right = guess == truth
    symbol, short = style.RIGHT_SYMBOL if right else style.WRONG_SYMBOL, words.shorten(method, 10)
    text = f"{symbol} {short}: {words.shorten(classes[guess], 26 - len(short))}"
    lines.append((text, style.RIGHT if right else style.WRONG))
  label_tile(axes, classes[truth], lines)
