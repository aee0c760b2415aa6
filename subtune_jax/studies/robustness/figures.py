"""The figures of a robustness study that compare settings: accuracies, distortion, rates.

Those along a training or a line of weights are in `curve_figures`.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import charts, marks, style
from subtune_jax.studies import fields
from subtune_jax.studies.robustness import record as study_lib

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_FAINT = 0.38
_APART = 0.04  # decades between the methods at one learning rate, so that none hides another
MOVED = "features moved,\n% of their norm"


def sides(study: study_lib.Study) -> dict[bool, str]:
  """Whether out of distribution -> title, of the sides that the study has."""
  found = {False: study.title_of(study.id)}
  return found | ({True: study.title_of(study.ood_column)} if study.ood else {})


def id_against_ood(study: study_lib.Study) -> "Figure | None":
  """Accuracy in and out of distribution: every training faint, the chosen settings large."""
  if not study.ood:
    return None
  chosen = {m: _chosen_point(study, m) for m in study.methods}
  faint = {
    m: np.array([[100 * study.accuracy(t["epochs"][-1], ood=ood) for ood in (False, True)]
                 for t in study.trainings(m)]).reshape(-1, 2)
    for m in study.methods
  }  # fmt: skip
  ends = np.array([[[e.low, e.mean, e.high] for e in point] for point in chosen.values()]) * 100
  low, high = np.nanmin(ends, axis=(0, 2)), np.nanmax(ends, axis=(0, 2))
  every = np.concatenate([*faint.values()])
  closer = bool(np.any(np.ptp(every, axis=0) > 1.5 * (high - low)))
  figure, panels = charts.panels(2 if closer else 1, 11.0 if closer else 8.5, 5.2)
  inside, outside = (f"accuracy on {title}, %" for title in sides(study).values())
  titles = ("all trainings", "the chosen settings, closer") if closer else ("",)
  for axes, title in zip(panels, titles, strict=True):
    _draw_points(study, axes, faint, chosen)
    charts.label(axes, title, x=inside, y=outside if axes is panels[0] else "", grid="both")
  if closer:
    room = np.maximum(0.08 * (high - low), 0.5)
    (left, bottom), (right, top) = low - room, high + room
    corners = ([left, right, right, left, left], [bottom, bottom, top, top, bottom])
    panels[0].plot(*corners, color=style.MUTED, linewidth=0.9, linestyle=style.DASHED, zorder=1)
    panels[1].set(xlim=(left, right), ylim=(bottom, top))
  keys = marks.keys(style.looks(study.methods), study.titles)
  charts.legend(figure, [*keys, (marks.key(style.MUTED, "o", size=4), "one training")])
  return figure


def _chosen_point(study: study_lib.Study, method: str):
  score = study.selection(study.rule, method)["accuracy"]
  return [study_lib.estimate(score[column]) for column in (study.id, study.ood_column)]


def _draw_points(study: study_lib.Study, axes, faint, chosen) -> None:
  for name, (color, marker) in style.looks(study.methods).items():
    axes.scatter(*faint[name].T, s=20, color=color, marker=marker, alpha=_FAINT, linewidths=0,
                 zorder=2)  # fmt: skip
    inside, outside = chosen[name]
    marks.interval(axes, 100 * inside.mean, (100 * outside.low, 100 * outside.high), color)
    marks.mean(axes, 100 * outside.mean, inside, color, marker, size=10, flat=True)


def distortion_bars(study: study_lib.Study) -> "Figure | None":
  """Relative distortion of the last block's features at the chosen setting, ID beside OOD."""
  if not study.tuned:
    return None
  found, methods, colors = sides(study), study.methods, style.colors(study.methods)
  height, width = 1.2 + (0.36 * len(found) + 0.12) * len(methods), 0.8 / len(found)
  figure, (axes,) = charts.panels(1, 9.5, height)
  values = {
    (name, ood): 100 * np.array([
      study.distortion(epoch["distortion"], "relative", ood=ood)
      for epoch in study.picked_epochs(study.rule, name)
    ])
    for name in methods for ood in found
  }  # fmt: skip
  charts.from_zero(axes, np.concatenate([*values.values()]), which="x")
  for (name, ood), seeds in values.items():
    at, mean = methods.index(name) + (ood - (len(found) - 1) / 2) * width, float(seeds.mean())
    marks.bar(axes, at, mean, 0.9 * width, colors[name], pale=ood, seeds=seeds,
              text=short_percent(mean), flat=True)  # fmt: skip
  charts.row_ticks(axes, [study.titles[name] for name in methods])
  charts.label(axes, x=MOVED.replace("\n", " "), grid="x")
  charts.legend(figure, [(marks.bar_key(pale=ood), title) for ood, title in found.items()])
  return figure


def short_percent(value: float) -> str:
  """A percentage over decades in two digits, without its sign: 0.013, 1.3, 130."""
  if value == 0 or not math.isfinite(value):
    return "0" if value == 0 else "n/a"
  digits = max(0, 1 - math.floor(math.log10(abs(value))))
  return f"{value:.{digits}f}"


def distortion_by_block(study: study_lib.Study) -> "Figure | None":
  """Relative distortion of every block's features, input to head, a panel for ID and OOD."""
  if not study.tuned:
    return None
  units, found, looks = study.entry["units"], sides(study), style.looks(study.methods)
  width, around = charts.page_width(len(units), 0.54), 0.8 + charts.label_room(units)
  figure, panels = charts.panels(
    len(found), width, 2.6, per_row=1, around=around, sharex=True, sharey=True
  )
  shown = []
  for axes, (ood, title) in zip(panels, found.items(), strict=True):
    for name, look in looks.items():
      values = 100 * study.block_distortion(name, "relative", ood=ood)
      shown.append(values.ravel())
      marks.lines(axes, range(len(units)), values, *look)
    charts.label(axes, title, y=MOVED)
  charts.from_zero(panels[0], np.concatenate(shown))
  charts.unit_ticks(panels[-1], units, width - 1.2)
  panels[-1].set_xlim(-0.4, len(units) - 0.6)
  charts.legend(figure, marks.keys(looks, study.titles, dashes="-"))
  return figure


def learning_rates(study: study_lib.Study) -> "Figure | None":
  """Learning rate against the distance that the weights moved, and against accuracy."""
  methods = [m for m in study.methods if len(_rates(study, m)) > 1]
  if not methods:
    return None
  accuracies = {ood: f"accuracy on\n{title}, %" for ood, title in sides(study).items()}
  found, looks = {None: "weights moved, %"} | accuracies, style.looks(study.methods)
  figure, panels = charts.panels(len(found), max(4.1 * len(found), 8.0), 4.5)
  entries = [*marks.keys(looks, study.titles, methods, dashes="-"),
             (marks.ring_key(), "rate chosen")]  # fmt: skip
  probe = study_lib.PROBE if study_lib.PROBE in study.methods else None
  for axes, (side, label) in zip(panels, found.items(), strict=True):
    shown = []
    for place, name in enumerate(methods):
      apart = 10 ** (_APART * (place - (len(methods) - 1) / 2))
      shown += _draw_rates(study, axes, name, side, apart, *looks[name])
    axes.set_xscale("log")
    axes.minorticks_off()
    charts.label(axes, x="learning rate", y=label)
    if side is None:
      charts.from_zero(axes, shown)
    elif probe:
      height = 100 * study.accuracy(study.trainings(probe)[-1]["epochs"][-1], ood=side)
      axes.axhline(height, color=looks[probe][0], linestyle=style.DOTTED, zorder=1)
  if probe:
    level = marks.key(looks[probe][0], dashes=style.DOTTED)
    entries.append((level, f"{study.titles[probe]} (no rate)"))
  charts.legend(figure, entries)
  return figure


def _rates(study: study_lib.Study, method: str) -> list[float]:
  return sorted({row["learning_rate"] for row in study.trainings(method)} - {0.0})


def _draw_rates(
  study: study_lib.Study, axes, method: str, side: bool | None, apart: float, color: str, marker
) -> list[float]:
  """One method of `learning_rates`; side None is the distance. Returns the values in per cent."""
  values: dict[float, list[float]] = {rate: [] for rate in _rates(study, method)}
  for row in study.trainings(method):
    if row["learning_rate"] in values:
      value = (fields.number(row["moved"]) if side is None
               else study.accuracy(row["epochs"][-1], ood=side))  # fmt: skip
      values[row["learning_rate"]].append(100 * value)
  for rate, seeds in values.items():
    xs = [rate * apart] * len(seeds)
    marks.seed_dots(axes, xs, seeds, color=color, alpha=0.55, linewidths=0)
  means = {rate: float(np.mean(seeds)) for rate, seeds in values.items()}
  marks.lines(axes, [rate * apart for rate in means], np.array([[*means.values()]]), color, marker)
  chosen = study.selection(study.rule, method)["learning_rate"]
  marks.ring(axes, chosen * apart, means[chosen], color)
  return [value for seeds in values.values() for value in seeds]
