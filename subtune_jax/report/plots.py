"""The figures of a report, drawn from its records.

Every function returns a matplotlib `Figure` of its own (no pyplot, no global state), so it works
without a display and from several threads. `png` renders one.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from subtune_jax.report import records, style, table

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

DPI = 160
SIZE, SMALL = 10, 8.5


def png(figure: "Figure") -> bytes:
  """A figure as the bytes of a PNG."""
  stream = io.BytesIO()
  figure.savefig(stream, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
  return stream.getvalue()


def new_figure(width: float, height: float, layout: str = "constrained") -> "Figure":
  """An empty figure of `width` x `height` inches that draws by Agg."""
  from matplotlib import figure
  from matplotlib.backends import backend_agg

  made = figure.Figure(figsize=(width, height), layout=layout)
  backend_agg.FigureCanvasAgg(made)
  return made


def plain(text: Any) -> str:
  """`text` as it stands: a dollar sign is no formula."""
  return str(text).replace("$", r"\$")


def shorten(text: str, length: int) -> str:
  return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def clean(axes: "Axes", grid: str = "y") -> None:
  """Takes the box off and puts a quiet grid behind the data."""
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(style.MUTED)
  axes.tick_params(colors=style.INK, labelsize=SMALL)
  axes.set_axisbelow(True)
  axes.grid(True, axis=grid, color=style.GRID, linewidth=0.8)


def method_legend(figure: "Figure", methods: Sequence[str], titles: Mapping[str, str]) -> None:
  """One legend above the axes: the colour of each method."""
  from matplotlib import patches

  colors = style.colors(methods)
  figure.legend(
    [patches.Patch(color=colors[m]) for m in methods],
    [plain(shorten(titles[m], 28)) for m in methods],
    loc="outside upper left",
    ncols=min(len(methods), 5),
    frameon=False,
    fontsize=SIZE,
  )


def accuracy_bars(run: records.Run, summary: table.Summary) -> "Figure":
  """Test accuracy of every method on every domain: bars, 95 % intervals, one dot per seed."""
  methods, count = run.methods, len(run.methods)
  colors, upright = style.colors(methods), count <= 5
  width = 0.82 / count
  figure = new_figure(min(max(9.5, 0.42 * (count + 1) * len(summary.columns)), 15), 4.6)
  axes = figure.add_subplot()
  for i, row in enumerate(summary.rows):
    for j, column in enumerate(summary.columns):
      x = _column_x(summary, j) + (i - (count - 1) / 2) * width
      seeds = np.mean([run.tests[t].correct(row.name).mean(1) for t in column.tests], axis=0)
      _draw_bar(axes, x, width, row.accuracy[column.key], seeds, colors[row.name], upright)
  xs = [_column_x(summary, j) for j in range(len(summary.columns))]
  axes.set_xticks(xs, [plain(c.title) for c in summary.columns], fontsize=SIZE)
  for j, column in enumerate(summary.columns[1:], start=1):
    if column.in_distribution != summary.columns[j - 1].in_distribution:
      axes.axvline((xs[j] + xs[j - 1]) / 2, color=style.MUTED, linewidth=0.8, linestyle=(0, (4, 4)))
  axes.set_xlim(xs[0] - 0.55, xs[-1] + 0.55)
  axes.set_ylabel("test accuracy, %", fontsize=SIZE)
  top = max(score.high for row in summary.rows for score in row.accuracy.values())
  axes.set_ylim(0, 100 * max(top, 0.01) * (1.1 if upright else 1.18))
  axes.tick_params(axis="x", length=0)
  clean(axes)
  method_legend(figure, methods, run.titles)
  return figure


def _draw_bar(
  axes, x: float, width: float, score: table.Estimate, seeds: np.ndarray, color: str, upright: bool
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
    fontsize=SMALL,
    color=style.INK,
    rotation=0 if upright else 90,
  )


def _column_x(summary: table.Summary, index: int) -> float:
  """Where the bars of a column stand: a gap after the in-distribution one, and before the mean."""
  keys = [column.key for column in summary.columns[: index + 1]]
  return index + (0.3 if index > 0 else 0) + (0.15 if table.MEAN_OOD in keys else 0)


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
  return {offsets[stage] + row["epoch"]: records.number(row[key]) for row in rows}


def learning_curves(run: records.Run) -> "Figure | None":
  """Validation accuracy and training loss by epoch: a column per method, its stages marked."""
  methods = [m for m in run.methods if any(t["history"] for t in run.chosen(m))]
  if not methods:
    return None
  per_row = 4 if len(methods) > 3 else len(methods)
  bands = math.ceil(len(methods) / per_row)
  figure = new_figure(max(2.9 * per_row, 5.5), 4.9 * bands)
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
    accuracy.set_title(plain(shorten(run.titles[methods[index]], 30)), fontsize=SIZE, pad=20)
    _mark_stages(run, methods[index], accuracy, loss)
    loss.set_xlabel("epoch", fontsize=SIZE)
    accuracy.tick_params(labelbottom=False)
    if column == 0:
      accuracy.set_ylabel("validation accuracy, %", fontsize=SIZE)
      loss.set_ylabel("training loss", fontsize=SIZE)
    else:
      accuracy.tick_params(labelleft=False)
      loss.tick_params(labelleft=False)
  return figure


def _draw_curves(run: records.Run, method: str, axes, key: str, scale: float) -> None:
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
  clean(axes)


def _mark_stages(run: records.Run, method: str, *panels) -> None:
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
      plain(shorten(label, max(room, 2))),
      ((start + end) / 2, 1.0),
      (0, 4),
      xycoords=("data", "axes fraction"),
      textcoords="offset points",
      ha="center",
      fontsize=SMALL - 0.5,
      color=style.MUTED,
    )


def setting_grids(run: records.Run) -> "Figure | None":
  """Validation accuracy at every learning rate (or strength) tried, per method."""
  methods = [m for m in run.methods if run.method(m)["grid"]]
  if not methods:
    return None
  per_row = min(len(methods), 4)
  rows = math.ceil(len(methods) / per_row)
  figure = new_figure(max(2.9 * per_row, 5.5), 3.3 * rows)
  all_axes = figure.subplots(rows, per_row, squeeze=False, sharey=True)
  most = max(len(run.method(method)["grid"]) for method in methods)
  for index, axes in enumerate(all_axes.flat):
    if index >= len(methods):
      axes.remove()
      continue
    _draw_grid(run, methods[index], axes, upright=most <= 4)
    if index % per_row == 0:
      axes.set_ylabel("validation accuracy, %", fontsize=SIZE)
  return figure


def _draw_grid(run: records.Run, method: str, axes, *, upright: bool) -> None:
  color, marker = style.colors(run.methods)[method], style.markers(run.methods)[method]
  entry = run.method(method)
  points = sorted(entry["grid"], key=lambda point: point["learning_rate"])
  values = [point["learning_rate"] for point in points]
  ys = [100 * records.number(point["validation_accuracy"]) for point in points]
  axes.plot(range(len(ys)), ys, color=color, marker=marker, markersize=5, linewidth=1.6)
  for place in (i for i, y in enumerate(ys) if math.isnan(y)):
    axes.text(place, 0.03, "diverged", transform=axes.get_xaxis_transform(), rotation=90,
              ha="center", va="bottom", fontsize=SMALL, color=style.MUTED)  # fmt: skip
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
  labels = [table.setting_value(v) if i % step == 0 else "" for i, v in enumerate(values)]
  axes.set_xticks(range(len(values)), labels, rotation=0 if upright else 45)
  axes.set_xlim(-0.6, len(values) - 0.4)
  axes.margins(y=0.15)
  names = {"learning_rate": "learning rate", "l2": "L2 strength"}
  axes.set_xlabel(names.get(entry["setting"], plain(entry["setting"])), fontsize=SIZE)
  axes.set_title(plain(shorten(entry["title"], 30)), fontsize=SIZE, pad=20)
  chosen, at_edge = f"chosen: {table.setting_value(entry['learning_rate'])}", entry["grid_edge"]
  axes.annotate(
    chosen + (", at the edge of the grid" if at_edge else ""),
    (0.5, 1.0),
    (0, 5),
    xycoords="axes fraction",
    textcoords="offset points",
    ha="center",
    fontsize=SMALL,
    color=style.WARNING if at_edge else style.MUTED,
    fontweight="bold" if at_edge else "normal",
  )
  clean(axes)


@dataclasses.dataclass(frozen=True)
class BlockRow:
  """A row of `network`: its label, the blocks that are coloured, the colour, a note at its end.

  A row with `gap` stands a little apart from the one above.
  """

  label: str
  blocks: frozenset[str]
  color: str
  note: str
  gap: bool = False


def trained_blocks(run: records.Run) -> "Figure":
  """The network from input to head as a row of boxes per method and stage, coloured if trained."""
  backbone, colors, rows = run.record["backbone"], style.colors(run.methods), []
  for method in run.record["methods"]:
    for number, stage in enumerate(method["stages"]):
      rows.append(
        BlockRow(
          label=_stage_label(run, method["name"], number),
          blocks=records.trained_blocks(stage, backbone),
          color=colors[method["name"]],
          note=f"{table.parameters(stage['trained_params'])} trained",
          gap=number == 0,
        )
      )
  return network(backbone, rows)


def network(backbone: Mapping[str, Any], rows: Sequence[BlockRow]) -> "Figure":
  """The network from input to head as rows of boxes.

  A box is as wide as the square root of its parameters (within limits); the numbers stand above.

  Args:
    backbone: of the record.
    rows: what is coloured; "head" is a block as well.
  """
  blocks = [*backbone["block_names"], records.HEAD]
  params = {**backbone["block_params"], records.HEAD: backbone["head_params"]}
  widths = _box_widths([params[block] for block in blocks])
  edges = np.concatenate([[0.0], np.cumsum(widths)])
  names = max(len(f"{shorten(b, 30)}  {table.parameters(params[b])}") for b in blocks)
  height = max(1.5, 0.08 * names + 0.25) + 0.42 * len(rows)
  figure = new_figure(min(max(11, 0.42 * len(blocks) + 3.5), 24), height)
  axes = figure.add_subplot()
  tops, top = [], 0.0
  for i, row in enumerate(rows):
    top += 0.35 if i and row.gap else 0.0
    _draw_block_row(row, axes, blocks, edges, top)
    tops.append(top)
    top += 1.0
  _label_boxes(axes, blocks, params, edges)
  axes.set_yticks([t + 0.41 for t in tops], [plain(row.label) for row in rows], fontsize=SIZE)
  axes.set_xlim(-0.1, edges[-1] + 0.1)
  axes.set_ylim(top, -0.15)
  axes.set_xticks([])
  axes.tick_params(axis="y", length=0)
  axes.spines[:].set_visible(False)
  return figure


def _box_widths(counts: Sequence[int]) -> np.ndarray:
  """Square roots of parameter counts, none below 0.6 or above 3 of their mean, mean 1."""
  roots = np.sqrt(np.maximum(counts, 1))
  return np.clip(roots / roots.mean(), 0.6, 3.0)


def _stage_label(run: records.Run, name: str, stage: int) -> str:
  stages = run.method(name)["stages"]
  title = shorten(run.titles[name], 28)
  if len(stages) == 1:
    return title
  return f"{title}, stage {stage + 1}" if stage == 0 else f"stage {stage + 1}"


def _draw_block_row(row: BlockRow, axes, blocks, edges, top: float) -> None:
  from matplotlib import patches

  for block, left, right in zip(blocks, edges[:-1], edges[1:], strict=True):
    on = block in row.blocks
    axes.add_patch(
      patches.Rectangle(
        (left + 0.04, top),
        right - left - 0.08,
        0.82,
        linewidth=0.8,
        facecolor=row.color if on else style.FROZEN,
        edgecolor=row.color if on else "#BBBBBB",
      )
    )
    if on:
      axes.text(
        (left + right) / 2,
        top + 0.41,
        style.RIGHT_SYMBOL,
        ha="center",
        va="center",
        fontsize=SMALL,
        color=style.text_color(row.color),
      )
  axes.annotate(
    plain(row.note),
    (edges[-1], top + 0.41),
    (8, 0),
    textcoords="offset points",
    va="center",
    fontsize=SMALL + 0.5,
    color=style.INK,
    annotation_clip=False,
  )


def _label_boxes(axes, blocks, params, edges) -> None:
  """Names and parameter counts of the blocks, upright above the first row."""
  for block, left, right in zip(blocks, edges[:-1], edges[1:], strict=True):
    axes.annotate(
      f"{plain(shorten(block, 30))}  {table.parameters(params[block])}",
      ((left + right) / 2, -0.15),
      (0, 3),
      textcoords="offset points",
      rotation=90,
      ha="center",
      va="bottom",
      fontsize=SMALL,
      color=style.INK,
      annotation_clip=False,
    )


def example_images(
  run: records.Run, name: str, stored: records.TestImages, *, count: int = 12
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
  per_row, side, line = min(6, len(picked)), 1.5, 0.175
  rows = math.ceil(len(picked) / per_row)
  width, height = side + 0.4, 0.3 + side + line * len(run.methods) + 0.25
  figure = new_figure(width * per_row, height * rows, layout="none")
  for index, stored_index in enumerate(picked):
    row, column = divmod(index, per_row)
    left, bottom = column * width + 0.08, (rows - row) * height - 0.3 - side
    box = (left / (width * per_row), bottom / (height * rows))
    axes = figure.add_axes((*box, side / (width * per_row), side / (height * rows)))
    axes.imshow(stored.images[stored_index], interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(style.GRID)
    _label_example(run, test, places[stored.ids[stored_index]], axes, line)
  return figure


def _label_example(
  run: records.Run, test: records.TestSet, place: int, axes, line_inches: float
) -> None:
  """The true class above an image; below it a line per method, right or wrong by symbol."""
  classes = run.record["data"]["class_names"]
  truth = int(test.labels[place])
  title = plain(shorten(classes[truth], 22))
  axes.set_title(title, fontsize=SIZE - 0.5, fontweight="bold", loc="left", pad=4)
  for number, method in enumerate(run.methods):
    guess = int(test.predicted[method][0, place])
    right = guess == truth
    symbol, short = style.RIGHT_SYMBOL if right else style.WRONG_SYMBOL, shorten(method, 10)
    text = f"{symbol} {short}: {shorten(classes[guess], 26 - len(short))}"
    axes.annotate(
      plain(text),
      (0, 0),
      (0, -5 - 72 * line_inches * number),
      xycoords="axes fraction",
      textcoords="offset points",
      va="top",
      fontsize=SMALL - 0.5,
      color=style.RIGHT if right else style.WRONG,
    )
