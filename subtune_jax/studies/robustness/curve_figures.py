"""The figures of a robustness study along a training, a line of weights, or a probe's steps."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import charts, marks, style, words
from subtune_jax.studies.robustness import figures as robustness_plots
from subtune_jax.studies.robustness import record as study_lib

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Row = study_lib.Row
_PER_ROW = 4
_LEAST_SPAN = 5.0
_EPOCHS = "epoch, over all stages"


def _curves(trainings: Sequence[Row], value: Callable[[Row], float]) -> np.ndarray:
  """[trainings, epochs] of a value after every epoch, stages one behind the other."""
  length = min(len(row["epochs"]) for row in trainings)
  return np.array([[value(epoch) for epoch in row["epochs"][:length]] for row in trainings])


def distortion_by_epoch(study: study_lib.Study) -> "Figure | None":
  """Distortion of the last block's features along training, and their CKA with the pretrained."""
  if not study.tuned:
    return None
  found, looks = robustness_plots.sides(study), style.looks(study.methods)
  count = len(found)
  figure, panels = charts.panels(
    2 * count, max(5.4 * count, 8.0), 3.2, per_row=count, sharex=True, sharey="row"
  )
  parts = (("relative", 0.0, 100, robustness_plots.MOVED),
           ("cka", 1.0, 1, "linear CKA with the\npretrained features"))  # fmt: skip
  for row, (kind, start, scale, label) in enumerate(parts):
    shown = []
    for axes, (ood, title) in zip(panels[row * count :], found.items(), strict=False):
      for name, (color, marker) in looks.items():
        curves = scale * _curves(
          study.picked(study.rule, name),
          lambda e, kind=kind, ood=ood: study.distortion(e["distortion"], kind, ood=ood),
        )
        curves = np.concatenate([np.full((len(curves), 1), start), curves], axis=1)
        shown.append(curves.ravel())
        last = curves.shape[1] - 1
        marks.lines(axes, range(last + 1), curves, color)
        marks.point(axes, last, curves[:, -1].mean(), color, marker, size=6).set_clip_on(False)
      axes.set_xlim(left=0)
      charts.whole_epochs(axes)
      charts.label(axes, "" if row else title, x=_EPOCHS if row else "", y="" if ood else label)
    values = np.concatenate(shown)
    if not row:
      charts.from_zero(panels[0], values)
  room = max(1 - float(np.nanmin(values)), 0.01)
  panels[count].set_ylim(max(1 - 1.05 * room, 0), 1 + 0.02 * room)
  charts.legend(figure, marks.keys(looks, study.titles, dashes="-"))
  return figure


def accuracy_by_epoch(study: study_lib.Study) -> "Figure":
  """Test accuracy along training, in and out of distribution: a panel per method."""
  figure, panels = _method_panels(len(study.methods), 3.3, shared=True)
  sides, values = robustness_plots.sides(study), []
  for index, (axes, (name, look)) in enumerate(
    zip(panels, style.looks(study.methods).items(), strict=True)
  ):
    trainings = study.picked(study.rule, name)
    for ood in sides:
      curves = 100 * _curves(trainings, lambda e, ood=ood: study.accuracy(e, ood=ood))
      last, dashes = curves.shape[1], style.DASHED if ood else "-"
      spans = _stages(trainings[0], last)
      for begin, end in spans:
        short = look if end - begin < 3 else look[:1]
        xs, own = range(begin + 1, end + 1), curves[:, begin:end]
        marks.lines(axes, xs, own, *short, dashes=dashes, filled=not ood)
      values.append(curves.ravel())
    axes.set_xlim(0.5, last + 0.5)
    named = study.method(name)["stages"]
    stages = [trainings[0]["epochs"][begin]["stage"] for begin, _ in spans]
    titles = [named[s]["title"] if s < len(named) else f"stage {s + 1}" for s in stages]
    marks.stages([axes], [(t, b + 0.5, e + 0.5) for t, (b, e) in zip(titles, spans, strict=True)])
    charts.whole_epochs(axes)
    charts.label(
      axes, words.shorten(study.titles[name], 30), x=_EPOCHS, noted=True,
      y="" if index % _PER_ROW else "test accuracy, %",
    )  # fmt: skip
  low, high = np.concatenate(values).min(), np.concatenate(values).max()
  room = max(0.06 * (high - low), 1.0)
  panels[0].set_ylim(max(low - room, 0), high + room)
  charts.legend(figure, [(marks.key(style.INK, dashes=style.DASHED if ood else "-"), title)
                         for ood, title in sides.items()])  # fmt: skip
  return figure


def _method_panels(count: int, height: float, *, shared: bool):
  """(figure, a panel per method in rows of four, on one scale of accuracy if `shared`)."""
  width = max(3.0 * min(count, _PER_ROW), 9.0)
  return charts.panels(count, width, height, per_row=_PER_ROW, around=0.4, sharey=shared)


def _stages(training: Row, length: int) -> list[tuple[int, int]]:
  """Half-open ranges of positions of the stages."""
  starts = [start for start in study_lib.stage_starts(training) if start < length]
  return list(zip(starts, [*starts[1:], length], strict=True))


def interpolation(study: study_lib.Study) -> "Figure | None":
  """Accuracy along the line of weights from the probe to the fine-tuned network."""
  curves = {name: rows for name, rows in study.entry["interpolation"].items() if rows}
  if not curves:
    return None
  figure, panels = _method_panels(len(curves), 3.7, shared=False)
  y = f"accuracy on\n{study.title_of(study.ood_column or study.id)}, %"
  x = f"accuracy on {study.title_of(study.id)}, %" if study.ood else "alpha"
  for index, (axes, (name, rows)) in enumerate(zip(panels, curves.items(), strict=True)):
    _draw_line(study, axes, name, rows)
    axes.margins(0.08)
    axes.set_ylim(_at_least(*axes.get_ylim()))
    if study.ood:
      axes.set_xlim(_at_least(*axes.get_xlim()))
    title, left = words.shorten(study.titles[name], 30), index % _PER_ROW == 0
    charts.label(axes, title, x=x, y=y if left else "", grid="both", noted=True)
  charts.legend(figure, [
    (marks.key(style.MUTED, "o", filled=False), "alpha = 0: the probe"),
    (marks.key(style.MUTED, "o"), "alpha = 1: fine-tuned"),
    (marks.ring_key(), "highest on validation"),
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
  """The line of one method, its ends as points, the best of validation in a ring."""
  alphas, values = _line_values(study, rows)
  color, best = style.colors(study.methods)[name], best_alpha(study, name)
  xs, ys = values[..., 1], values[..., 2]
  if not study.ood:
    xs, ys = np.broadcast_to(alphas, xs.shape), xs
  if len(values) > 1:
    axes.plot(xs.T, ys.T, color=color, **marks.THIN)
  x, y = xs.mean(axis=0), ys.mean(axis=0)
  axes.plot(x, y, color=color, linewidth=2.0, marker="o", markersize=3, zorder=3)
  for index, filled in ((0, False), (-1, True)):
    marks.point(axes, x[index], y[index], color, "o", filled=filled, size=9)
  marks.ring(axes, x[best], y[best])
  charts.note(
    axes, f"highest on validation: alpha = {alphas[best]:.2g}", (0.5, 1.0), (0, 5),
    xycoords="axes fraction", ha="center", color=style.MUTED,
  )  # fmt: skip


def probe_steps(study: study_lib.Study) -> "Figure | None":
  """LP-FT from probes stopped early: accuracy of the probe and after fine-tuning."""
  rows, found = study.entry["probe_steps"], robustness_plots.sides(study)
  if not rows:
    return None
  figure, panels = charts.panels(len(found), max(4.8 * len(found), 8.0), 4.2)
  looks, unknown = style.looks(study.methods), (style.INK, "o")
  kinds = {"probe": looks.get(study_lib.PROBE, unknown), "tuned": looks.get("lp_ft", unknown)}
  for axes, (ood, title) in zip(panels, found.items(), strict=True):
    for kind, (color, marker) in kinds.items():
      xs = np.arange(len(rows)) + (0.06 if kind == "tuned" else -0.06)
      values = [study_lib.estimate(row[kind][study.ood_column if ood else study.id])
                for row in rows]  # fmt: skip
      axes.plot(xs, [100 * value.mean for value in values], color=color, linewidth=1.5)
      for x, value in zip(xs, values, strict=True):
        marks.mean(axes, x, value, color, marker, size=6)
    axes.set_xticks(range(len(rows)), [str(row["steps"]) for row in rows])
    axes.set_xlim(-0.4, len(rows) - 0.6)
    charts.label(axes, title, x="L-BFGS steps of the probe", y="" if ood else "test accuracy, %")
  titles = {"probe": "the probe", "tuned": "after fine-tuning (LP-FT)"}
  charts.legend(figure, marks.keys(kinds, titles))
  return figure
