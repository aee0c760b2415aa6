"""The figures of a robustness study along a training, a line of weights, or a probe's steps."""

from collections.abc import Callable, Sequence
import math
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import chart_elements, charts, style, words
from subtune_jax.studies.robustness import figures as robustness_plots
from subtune_jax.studies.robustness import record as study_lib

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Row = study_lib.Row
_THIN = {"linewidth": 0.7, "alpha": 0.4}
_PER_ROW = 4
_LEAST_SPAN = 5.0


def _curves(trainings: Sequence[Row], value: Callable[[Row], float]) -> np.ndarray:
  """[trainings, epochs] of a value after every epoch, stages one behind the other."""
  length = min(len(row["epochs"]) for row in trainings)
  return np.array([[value(epoch) for epoch in row["epochs"][:length]] for row in trainings])


def _draw(
  axes, xs: Sequence[float], curves: np.ndarray, color: str, marker: str, dashes: object = "-"
) -> None:
  """Seeds thin, their mean thick; a stage of one or two epochs gets markers, hollow if dashed."""
  look = {"color": color, "linestyle": dashes}
  if len(curves) > 1:
    axes.plot(xs, curves.T, **look, **_THIN)
  mark = {"marker": marker, "markersize": 6} if len(xs) < 3 else {}
  if mark and dashes != "-":
    mark |= {"markerfacecolor": "white"}
  axes.plot(xs, curves.mean(axis=0), linewidth=1.9, zorder=3, **look, **mark)


def distortion_by_epoch(study: study_lib.Study) -> "Figure | None":
  """Distortion of the last block's features along training, and their CKA with the pretrained."""
  if not study.tuned:
    return None
  found = robustness_plots.sides(study)
  figure = charts.new_figure(max(5.4 * len(found), 8.0), 6.4)
  panels = figure.subplots(2, len(found), squeeze=False, sharex=True, sharey="row")
  colors, markers = style.colors(study.methods), style.markers(study.methods)
  shown, alike = [], []
  for column, (ood, title) in enumerate(found.items()):
    for name in study.methods:
      trainings = study.picked(study.rule, name)
      for row, kind, start, scale in ((0, "relative", 0.0, 100), (1, "cka", 1.0, 1)):
        curves = scale * _curves(
          trainings, lambda e, kind=kind, ood=ood: study.distortion(e["distortion"], kind, ood=ood)
        )
        curves = np.concatenate([np.full((len(curves), 1), start), curves], axis=1)
        (alike if row else shown).append(curves.ravel())
        axes = panels[row, column]
        _draw(axes, range(curves.shape[1]), curves, colors[name], markers[name])
        axes.plot(
          [curves.shape[1] - 1], [curves[:, -1].mean()], marker=markers[name], markersize=6,
          color=colors[name], linestyle="none", clip_on=False, zorder=4,
        )  # fmt: skip
    panels[0, column].set_title(title, fontsize=charts.SIZE, loc="left", pad=4)
    panels[1, column].set_xlabel("epoch, over all stages", fontsize=charts.SIZE)
  robustness_plots.from_zero(panels[0, 0], np.concatenate(shown))
  least = float(np.nanmin(np.concatenate(alike)))
  room = max(1 - least, 0.01)
  panels[1, 0].set_ylim(max(1 - 1.05 * room, 0), 1 + 0.02 * room)
  panels[0, 0].set_ylabel(robustness_plots.MOVED, fontsize=charts.SIZE)
  panels[1, 0].set_ylabel("linear CKA with the\npretrained features", fontsize=charts.SIZE)
  for axes in panels.flat:
    axes.set_xlim(left=0)
    robustness_plots.integer_epochs(axes)
    charts.clean(axes)
  chart_elements.legend(figure, robustness_plots.method_entries(study, study.methods, line=True))
  return figure


def accuracy_by_epoch(study: study_lib.Study) -> "Figure":
  """Test accuracy along training, in and out of distribution: a panel per method."""
  figure, panels = _method_panels(study.methods, 3.3)
  values = []
  for axes, name in zip(panels, study.methods, strict=True):
    trainings, last = study.picked(study.rule, name), 0
    color, marker = style.colors(study.methods)[name], style.markers(study.methods)[name]
    for ood in robustness_plots.sides(study):
      curves = 100 * _curves(trainings, lambda e, ood=ood: study.accuracy(e, ood=ood))
      xs, last = range(1, curves.shape[1] + 1), curves.shape[1]
      dashes = robustness_plots.DASHES if ood else "-"
      for begin, end in _stages(trainings[0], last):
        _draw(axes, xs[begin:end], curves[:, begin:end], color, marker, dashes)
      values.append(curves.ravel())
    _mark_stages(study, axes, name, trainings[0], last)
    axes.set_xlim(0.5, last + 0.5)
    robustness_plots.integer_epochs(axes)
    axes.set_xlabel("epoch, over all stages", fontsize=charts.SIZE)
    charts.clean(axes)
  low, high = np.concatenate(values).min(), np.concatenate(values).max()
  room = max(0.06 * (high - low), 1.0)
  panels[0].set_ylim(max(low - room, 0), high + room)
  for axes in panels[::_PER_ROW]:
    axes.set_ylabel("test accuracy, %", fontsize=charts.SIZE)
  chart_elements.legend(figure, robustness_plots.side_entries(study))
  return figure


def _method_panels(methods: Sequence[str], height: float, *, shared: bool = True):
  """(figure, a panel per method in rows of four, on one scale of accuracy if `shared`)."""
  columns = min(len(methods), _PER_ROW)
  bands = math.ceil(len(methods) / columns)
  figure = charts.new_figure(max(3.0 * columns, 9.0), 0.4 + height * bands)
  panels = figure.subplots(bands, columns, squeeze=False, sharey=shared).ravel()
  for axes in panels[len(methods) :]:
    axes.remove()
  return figure, list(panels[: len(methods)])


def _stages(training: Row, length: int) -> list[tuple[int, int]]:
  """Half-open ranges of positions of the stages."""
  starts = [start for start in study_lib.stage_starts(training) if start < length]
  return list(zip(starts, [*starts[1:], length], strict=True))


def _mark_stages(study: study_lib.Study, axes, method: str, training: Row, length: int) -> None:
  """The method above its panel; below it the names of the stages, dashed lines between them."""
  axes.set_title(
    charts.plain(words.shorten(study.titles[method], 30)), fontsize=charts.SIZE, pad=20
  )
  stages, ranges = study.method(method)["stages"], _stages(training, length)
  for number, (begin, end) in enumerate(ranges):
    if number:
      axes.axvline(begin + 0.5, color=style.MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
    stage = training["epochs"][begin]["stage"]
    title = stages[stage]["title"] if stage < len(stages) else f"stage {stage + 1}"
    room = int(38 * (end - begin) / max(length, 1))
    if len(ranges) > 1:
      title = f"{stage + 1}: {title}" if room >= 8 else str(stage + 1)
    axes.annotate(
      charts.plain(words.shorten(title, max(room, 2))), ((begin + end + 1) / 2, 1.0), (0, 4),
      xycoords=("data", "axes fraction"), textcoords="offset points", ha="center",
      fontsize=charts.SMALL - 0.5, color=style.MUTED,
    )  # fmt: skip


def interpolation(study: study_lib.Study) -> "Figure | None":
  """Accuracy along the line of weights from the probe to the fine-tuned network."""
  curves = {name: rows for name, rows in study.entry["interpolation"].items() if rows}
  if not curves:
    return None
  figure, panels = _method_panels(list(curves), 3.7, shared=False)
  for axes, (name, rows) in zip(panels, curves.items(), strict=True):
    _draw_line(study, axes, name, rows)
    axes.set_title(
      charts.plain(words.shorten(study.titles[name], 30)), fontsize=charts.SIZE, pad=20
    )
    label = f"accuracy on {study.title_of(study.id)}, %" if study.ood else "alpha"
    axes.set_xlabel(label, fontsize=charts.SIZE)
    axes.margins(0.08)
    axes.set_ylim(_at_least(*axes.get_ylim()))
    if study.ood:
      axes.set_xlim(_at_least(*axes.get_xlim()))
    charts.clean(axes, grid="both")
  side = study.ood_column or study.id
  for axes in panels[::_PER_ROW]:
    axes.set_ylabel(f"accuracy on\n{study.title_of(side)}, %", fontsize=charts.SIZE)
  chart_elements.legend(figure, [
    (chart_elements.point_entry(style.MUTED, "o", filled=False), "alpha = 0: the probe"),
    (chart_elements.point_entry(style.MUTED, "o", filled=True), "alpha = 1: fine-tuned"),
    (robustness_plots.ring_entry(), "highest on validation"),
  ])  # fmt: skip
  return figure


def _at_least(low: float, high: float) -> tuple[float, float]:
  """Limits that span `_LEAST_SPAN` points or more, lest an image or two look like much."""
  more = max(_LEAST_SPAN - (high - low), 0.0) / 2
  return low - more, high + more


def _line_values(study: study_lib.Study, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
  """(alphas [n], [seeds, n, 3]: validation accuracy, ID accuracy, OOD accuracy in per cent)."""
  alphas = sorted({row["alpha"] for row in rows})
  found = {(row["seed"], row["alpha"]): row["accuracy"] for row in rows}
  seeds = sorted({row["seed"] for row in rows})
  values = [
    [[acc[study.validation], acc[study.id], study.out(acc)]
     for acc in (found[seed, alpha] for alpha in alphas)]
    for seed in seeds
  ]  # fmt: skip
  return np.array(alphas), 100 * np.array(values)


def best_alpha(study: study_lib.Study, method: str) -> int:
  """Index of the alpha of the highest mean validation accuracy; of several the lowest."""
  _, values = _line_values(study, study.entry["interpolation"][method])
  return int(np.argmax(values[..., 0].mean(axis=0)))


def _draw_line(study: study_lib.Study, axes, name: str, rows: Sequence[Row]) -> None:
  alphas, values = _line_values(study, rows)
  color = style.colors(study.methods)[name]
  xs, ys = values[..., 1], values[..., 2]
  if not study.ood:
    xs, ys = np.broadcast_to(alphas, xs.shape), xs
  if len(values) > 1:
    axes.plot(xs.T, ys.T, color=color, **_THIN)
  x, y = xs.mean(axis=0), ys.mean(axis=0)
  axes.plot(x, y, color=color, linewidth=1.9, marker="o", markersize=3, zorder=3)
  for index, filled in ((0, False), (-1, True)):
    chart_elements.point(axes, x[index], y[index], color=color, marker="o", filled=filled, size=9)
  best = best_alpha(study, name)
  robustness_plots.ring(axes, x[best], y[best], style.INK)
  axes.annotate(
    f"highest on validation: alpha = {alphas[best]:.2g}", (0.5, 1.0), (0, 5),
    xycoords="axes fraction", textcoords="offset points", ha="center", fontsize=charts.SMALL,
    color=style.MUTED,
  )  # fmt: skip


def probe_steps(study: study_lib.Study) -> "Figure | None":
  """LP-FT from probes stopped early: accuracy of the probe and after fine-tuning."""
  rows = study.entry["probe_steps"]
  if not rows:
    return None
  found = robustness_plots.sides(study)
  figure = charts.new_figure(max(4.8 * len(found), 8.0), 4.2)
  panels = figure.subplots(1, len(found), squeeze=False)[0]
  colors, markers = style.colors(study.methods), style.markers(study.methods)
  looks = {"probe": (study_lib.PROBE, "the probe"), "tuned": ("lp_ft", "after fine-tuning (LP-FT)")}
  entries = []
  for kind, (name, label) in looks.items():
    color, marker = colors.get(name, style.INK), markers.get(name, "o")
    entries.append((chart_elements.point_entry(color, marker, filled=True, size=6), label))
    xs = np.arange(len(rows)) + (0.06 if kind == "tuned" else -0.06)
    for axes, ood in zip(panels, found, strict=True):
      column = study.ood_column if ood else study.id
      values = [study_lib.estimate(row[kind][column]) for row in rows]
      for x, value in zip(xs, values, strict=True):
        chart_elements.interval(axes, x, value, color, line=1.3, cap=0.0)
      axes.plot(xs, [100 * value.mean for value in values], color=color, marker=marker,
                markersize=6, linewidth=1.8)  # fmt: skip
  for axes, title in zip(panels, found.values(), strict=True):
    axes.set_xticks(range(len(rows)), [str(row["steps"]) for row in rows])
    axes.set_xlim(-0.4, len(rows) - 0.6)
    axes.set_title(title, fontsize=charts.SIZE, loc="left")
    axes.set_xlabel("L-BFGS steps of the probe", fontsize=charts.SIZE)
    charts.clean(axes)
  panels[0].set_ylabel("test accuracy, %", fontsize=charts.SIZE)
  chart_elements.legend(figure, entries)
  return figure
