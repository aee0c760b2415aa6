"""The figures of a comparison of methods, drawn from its compare_record."""

from collections.abc import Mapping, Sequence
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from subtune_jax.report import block_strip, charts, estimate, style, words
from subtune_jax.statistics import criteria
from subtune_jax.studies import fields
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import summary as summary_lib

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_LINE = 0.175  # inches, of text below an image


def accuracy_bars(run: compare_record.Run, summary: summary_lib.Summary) -> "Figure":
  """Test accuracy of every method on every domain: bars, 95 % intervals, one dot per seed."""
  methods, count = run.methods, len(run.methods)
  colors, upright = style.colors(methods), count <= 5
  width = 0.82 / count
  figure = charts.new_figure(min(max(9.5, 0.42 * (count + 1) * len(summary.columns)), 15), 4.6)
  axes = figure.add_subplot()
  for i, row in enumerate(summary.rows):
    for j, column in enumerate(summary.columns):
      x = _column_x(summary, j) + (i - (count - 1) / 2) * width
      seeds = np.mean([run.tests[t].correct(row.name).mean(1) for t in column.tests], axis=0)
      _draw_bar(axes, x, width, row.accuracy[column.key], seeds, colors[row.name], upright)
  xs = [_column_x(summary, j) for j in range(len(summary.columns))]
  axes.set_xticks(xs, [charts.plain(c.title) for c in summary.columns], fontsize=charts.SIZE)
  for j, column in enumerate(summary.columns[1:], start=1):
    if column.in_distribution != summary.columns[j - 1].in_distribution:
      axes.axvline((xs[j] + xs[j - 1]) / 2, color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 4)))
  axes.set_xlim(xs[0] - 0.55, xs[-1] + 0.55)
  axes.set_ylabel("test accuracy, %", fontsize=charts.SIZE)
  top = max(score.high for row in summary.rows for score in row.accuracy.values())
  axes.set_ylim(0, 100 * max(top, 0.01) * (1.1 if upright else 1.18))
  axes.tick_params(axis="x", length=0)
  charts.clean(axes)
  charts.method_legend(figure, methods, run.titles)
  return figure


def _draw_bar(
  axes,
  x: float,
  width: float,
  score: estimate.Estimate,
  seeds: np.ndarray,
  color: str,
  upright: bool,
) -> None:
  """One bar: mean, interval (dark on a white halo), seeds [num_seeds] as dots, the number."""
  mean, low, high = 100 * score.mean, 100 * score.low, 100 * score.high
  axes.bar(x, mean, width * 0.92, color=color, zorder=2)
  for ink, line, cap in (("white", 3.4, 0.11), (style.INK, 1.4, 0.09)):
    axes.vlines(x, low, high, color=ink, linewidth=line, zorder=4)
    ends = ([x - cap * width] * 2, [x + cap * width] * 2)
    axes.hlines([low, high], *ends, color=ink, linewidth=line, zorder=4)
  offsets = np.linspace(-0.22, 0.22, len(seeds)) * width if len(seeds) > 1 else np.zeros(1)
  dots = {"color": "white", "edgecolors": style.INK, "linewidths": 0.6, "zorder": 5}
  axes.scatter(x + offsets, 100 * seeds, s=11, **dots)
  axes.annotate(
    f"{mean:.1f}",
    (x, max(high, mean)),
    (0, 5),
    textcoords="offset points",
    ha="center",
    fontsize=charts.SMALL,
    color=style.INK,
    rotation=0 if upright else 90,
  )


def _column_x(summary: summary_lib.Summary, index: int) -> float:
  """Where the bars of a column stand: a gap after the in-distribution one, and before the mean."""
  keys = [column.key for column in summary.columns[: index + 1]]
  return index + (0.3 if index > 0 else 0) + (0.15 if summary_lib.MEAN_OOD in keys else 0)


def _stage_offsets(histories: Sequence[Sequence[Mapping[str, Any]]]) -> dict[int, float]:
  """Per stage the epochs before it, over all seeds, so that stages stand one behind the other."""
  rows = [row for history in histories for row in history]
  offsets, before = {}, 0.0
  for stage in sorted({row["stage"] for row in rows}):
    epochs = [row["epoch"] for row in rows if row["stage"] == stage]
    offsets[stage] = before + (1 if min(epochs) == 0 else 0)
    before = offsets[stage] + max(epochs)
  return offsets


def _curve(history, offsets, stage: int, key: str) -> dict[float, float]:
  """Epoch -> value of one stage of one training, stages one behind the other."""
  rows = [row for row in history if row["stage"] == stage]
  return {offsets[stage] + row["epoch"]: fields.number(row[key]) for row in rows}


def learning_curves(run: compare_record.Run) -> "Figure | None":
  """Validation accuracy and training loss by epoch: a column per method, its stages marked."""
  methods = [m for m in run.methods if any(t["history"] for t in run.chosen(m))]
  if not methods:
    return None
  per_row = 4 if len(methods) > 3 else len(methods)
  bands = math.ceil(len(methods) / per_row)
  figure = charts.new_figure(max(2.9 * per_row, 5.5), 4.9 * bands)
  axes = figure.subplots(2 * bands, per_row, squeeze=False)
  for index in range(bands * per_row):
    band, column = divmod(index, per_row)
    accuracy, loss = axes[2 * band, column], axes[2 * band + 1, column]
    if index >= len(methods):
      accuracy.remove()
      loss.remove()
      continue
    accuracy.sharey(axes[0, 0])
    loss.sharey(axes[1, 0])
    loss.sharex(accuracy)
    _draw_curves(run, methods[index], accuracy, "validation_accuracy", 100.0)
    _draw_curves(run, methods[index], loss, "train_loss", 1.0)
    accuracy.set_title(
      charts.plain(words.shorten(run.titles[methods[index]], 30)), fontsize=charts.SIZE, pad=20
    )
    _mark_stages(run, methods[index], accuracy, loss)
    loss.set_xlabel("epoch", fontsize=charts.SIZE)
    accuracy.tick_params(labelbottom=False)
    if column == 0:
      accuracy.set_ylabel("validation accuracy, %", fontsize=charts.SIZE)
      loss.set_ylabel("training loss", fontsize=charts.SIZE)
    else:
      accuracy.tick_params(labelleft=False)
      loss.tick_params(labelleft=False)
  return figure


def _draw_curves(run: compare_record.Run, method: str, axes, key: str, scale: float) -> None:
  """Seeds as thin lines and their mean as a thick one; a single point gets a marker."""
  color, marker = style.colors(run.methods)[method], style.markers(run.methods)[method]
  histories = [t["history"] for t in run.chosen(method) if t["history"]]
  offsets, last = _stage_offsets(histories), 0.0
  for stage in offsets:
    curves = [_curve(history, offsets, stage, key) for history in histories]
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    mark = marker if len(shared) < 3 else None
    for curve in curves:
      xs = sorted(curve)
      axes.plot(
        xs,
        [scale * curve[x] for x in xs],
        color=color,
        linewidth=0.8,
        alpha=0.5,
        marker=mark,
        markersize=3,
      )
      last = max([last, *xs])
    means = [scale * np.mean([curve[x] for curve in curves]) for x in shared]
    axes.plot(shared, means, color=color, linewidth=2.2, marker=mark, markersize=6)
  axes.set_xlim(0, last * 1.04 if last > 2 else last + 1)
  axes.locator_params(axis="x", integer=True, nbins=6)
  charts.clean(axes)


def _mark_stages(run: compare_record.Run, method: str, *panels) -> None:
  """A dashed line where a stage begins, and the name of each stage above the first panel."""
  histories = [t["history"] for t in run.chosen(method) if t["history"]]
  offsets = _stage_offsets(histories)
  stages = run.method(method)["stages"]
  rows = [row for history in histories for row in history]
  right = panels[0].get_xlim()[1]
  for number, (stage, start) in enumerate(offsets.items()):
    end = start + max(row["epoch"] for row in rows if row["stage"] == stage)
    if number:
      for axes in panels:
        axes.axvline(start, color=style.MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
    title = stages[stage]["title"] if 0 <= stage < len(stages) else f"stage {stage}"
    room = int(38 * (end - start) / right)
    if len(offsets) == 1:
      start, end, room, label = 0, right, 38, title
    else:
      label = f"{number + 1}: {title}" if room >= 8 else str(number + 1)
    panels[0].annotate(
      charts.plain(words.shorten(label, max(room, 2))),
      ((start + end) / 2, 1.0),
      (0, 4),
      xycoords=("data", "axes fraction"),
      textcoords="offset points",
      ha="center",
      fontsize=charts.SMALL - 0.5,
      color=style.MUTED,
    )


def setting_grids(run: compare_record.Run) -> "Figure | None":
  """What choices went by at every learning rate (or strength) tried, per method."""
  methods = [m for m in run.methods if len(run.method(m)["grid"]) > 1]
  if not methods:
    return None
  criterion = criteria.of(run.record["config"])
  per_row = min(len(methods), 4)
  rows = math.ceil(len(methods) / per_row)
  figure = charts.new_figure(max(2.9 * per_row, 5.5), 3.3 * rows)
  all_axes = figure.subplots(rows, per_row, squeeze=False, sharey=True)
  most = max(len(run.method(method)["grid"]) for method in methods)
  for index, axes in enumerate(all_axes.flat):
    if index >= len(methods):
      axes.remove()
      continue
    _draw_grid(run, methods[index], axes, criterion, upright=most <= 4)
    if index % per_row == 0:
      axes.set_ylabel(criterion.label, fontsize=charts.SIZE)
  return figure


def _draw_grid(
  run: compare_record.Run, method: str, axes, criterion: criteria.Criterion, *, upright: bool
) -> None:
  color, marker = style.colors(run.methods)[method], style.markers(run.methods)[method]
  entry = run.method(method)
  points = sorted(entry["grid"], key=lambda point: point["learning_rate"])
  values = [point["learning_rate"] for point in points]
  ys = [fields.number(criterion.shown(point)) for point in points]
  axes.plot(range(len(ys)), ys, color=color, marker=marker, markersize=5, linewidth=1.6)
  for place in (i for i, y in enumerate(ys) if math.isnan(y)):
    axes.text(place, 0.03, "diverged", transform=axes.get_xaxis_transform(), rotation=90,
              ha="center", va="bottom", fontsize=charts.SMALL, color=style.MUTED)  # fmt: skip
  near = min(range(len(values)), key=lambda i: abs(values[i] - entry["learning_rate"]))
  if math.isclose(values[near], entry["learning_rate"], rel_tol=1e-6):
    axes.plot(
      [near],
      [ys[near]],
      marker="o",
      markersize=15,
      markerfacecolor="none",
      markeredgecolor=style.INK,
      markeredgewidth=1.6,
      linestyle="none",
    )
  step = max(1, math.ceil(len(values) / 8))
  labels = [words.setting_value(v) if i % step == 0 else "" for i, v in enumerate(values)]
  axes.set_xticks(range(len(values)), labels, rotation=0 if upright else 45)
  axes.set_xlim(-0.6, len(values) - 0.4)
  axes.margins(y=0.15)
  names = {"learning_rate": "learning rate", "l2": "L2 strength"}
  axes.set_xlabel(names.get(entry["setting"], charts.plain(entry["setting"])), fontsize=charts.SIZE)
  axes.set_title(charts.plain(words.shorten(entry["title"], 30)), fontsize=charts.SIZE, pad=20)
  chosen, at_edge = f"chosen: {words.setting_value(entry['learning_rate'])}", entry["grid_edge"]
  axes.annotate(
    chosen + (", at the edge of the grid" if at_edge else ""),
    (0.5, 1.0),
    (0, 5),
    xycoords="axes fraction",
    textcoords="offset points",
    ha="center",
    fontsize=charts.SMALL,
    color=style.WARNING if at_edge else style.MUTED,
    fontweight="bold" if at_edge else "normal",
  )
  charts.clean(axes)


def trained_blocks(run: compare_record.Run) -> "Figure":
  """The network from input to head as a row of boxes per method and stage, coloured if trained."""
  backbone, colors, rows = run.record["backbone"], style.colors(run.methods), []
  for method in run.record["methods"]:
    for number, stage in enumerate(method["stages"]):
      rows.append(
        block_strip.BlockRow(
          label=_stage_label(run, method["name"], number),
          blocks=compare_record.trained_blocks(stage, backbone),
          color=colors[method["name"]],
          note=f"{words.parameters(stage['trained_params'])} trained",
          gap=number == 0,
        )
      )
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
    axes.annotate(
      charts.plain(text),
      (0, 0),
      (0, -5 - 72 * _LINE * number),
      xycoords="axes fraction",
      textcoords="offset points",
      va="top",
      fontsize=charts.SMALL - 0.5,
      color=color,
    )


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
