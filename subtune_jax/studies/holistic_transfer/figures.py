"""The figures of a study of holistic transfer that compare networks.

Those along a training, and of the classifier's weights, are in `holistic_curves`; those of sizes,
optimisers and units in `holistic_studies`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import chart_elements, charts, style, words
from subtune_jax.studies.holistic_transfer import record as holistic_records

if TYPE_CHECKING:
  from matplotlib.artist import Artist
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Study = holistic_records.Study
Estimate = holistic_records.Estimate
CALIBRATED = {"none": "o", "alg": "D", "pcv": "^", "star": "*"}
LABELS = {
  "none": "as it is (gamma = 0)", "alg": "ALG", "pcv": "PCV", "star": "gamma*: best on test, oracle"
}  # fmt: skip
SEEN, ABSENT = "accuracy on seen classes, Acc S/Y, %", "accuracy on absent classes, Acc U/Y, %"
_SIZES = {"none": 9, "alg": 8.5, "pcv": 11, "star": 15}
_THIN = {"linewidth": 0.7, "alpha": 0.45}


def swatch_entries(study: Study, titles: Sequence[str]) -> list[tuple["Artist", str]]:
  """Legend entries: a line of each method's colour."""
  return [(chart_elements.level_entry(study.colors[t], "-"), words.shorten(t, 28)) for t in titles]


def percent_axes(axes: "Axes", label: str) -> None:
  """A label, and an axis of per cent from 0 with some room above the data."""
  axes.set_ylabel(label, fontsize=charts.SIZE)
  axes.set_ylim(bottom=0)
  charts.clean(axes)


def seed_dots(
  axes: "Axes", x: float, seeds: Sequence[float], width: float, *, flat: bool = False
) -> None:
  """A dot per seed across a bar; none for a single seed."""
  if len(seeds) < 2:
    return
  places = x + np.linspace(-0.22, 0.22, len(seeds)) * width
  xs, ys = (seeds, places) if flat else (places, seeds)
  axes.scatter(xs, ys, s=11, color="white", edgecolors=style.INK, linewidths=0.6, zorder=5)


def bar_look(color: str, *, pale: bool = False) -> dict[str, object]:
  """Face and edge of a bar; a pale one is hatched."""
  from matplotlib import colors

  if not pale:
    return {"facecolor": color, "edgecolor": color, "linewidth": 0.8}
  light = colors.to_hex(1 - 0.3 * (1 - np.array(colors.to_rgb(color))))
  return {"facecolor": light, "edgecolor": color, "linewidth": 0.8, "hatch": "////"}


def plane(study: Study) -> "Figure":
  """Acc_S/Y against Acc_U/Y: the curves of the source model and of fine-tuning (figure 2)."""
  figure = charts.new_figure(8.6, 6.2)
  axes = figure.add_subplot()
  shown = set()
  for method, title in zip(("pretrained", "ft"), study.compared, strict=True):
    color, curves = study.colors[title], study.curves(method)
    if len(curves) > 1:
      for curve in curves:
        axes.plot(100 * curve.seen, 100 * curve.unseen, color=color, **_THIN)
    seen, unseen = holistic_records.mean_curve(curves)
    axes.plot(100 * seen, 100 * unseen, color=color, linewidth=2.0, zorder=3)
    for kind, marker in CALIBRATED.items():
      point = _point(study, title, kind)
      if point is None:
        continue
      shown.add(kind)
      axes.plot(
        *point, marker=marker, markersize=_SIZES[kind], linestyle="none", zorder=5, color=color,
        markerfacecolor="white" if kind == "star" else color, clip_on=False,
        markeredgecolor=color if kind == "star" else "white", markeredgewidth=1.2,
      )  # fmt: skip
  axes.set(xlim=(0, None), ylim=(0, None))
  axes.set_xlabel(SEEN, fontsize=charts.SIZE)
  axes.set_ylabel(ABSENT, fontsize=charts.SIZE)
  charts.clean(axes, grid="both")
  entries = swatch_entries(study, study.compared)
  chart_elements.legend(
    figure, entries + calibration_entries([k for k in CALIBRATED if k in shown])
  )
  return figure


def calibration_entries(kinds: Sequence[str]) -> list[tuple["Artist", str]]:
  """Legend entries: the marker of each calibration."""
  return [
    (
      chart_elements.point_entry(
        style.MUTED, CALIBRATED[k], filled=k != "star", size=0.8 * _SIZES[k]
      ),
      LABELS[k],
    )
    for k in kinds
  ]


def _point(study: Study, title: str, kind: str) -> tuple[list[float], list[float]] | None:
  numbers = study.numbers(title, kind)
  if numbers is None:
    return None
  micro = numbers["accuracy"]["micro"]
  return [100 * micro["S/Y"]["mean"]], [100 * micro["U/Y"]["mean"]]


def plane_methods(study: Study) -> "Figure":
  """Every method in the plane of Acc_S/Y and Acc_U/Y, a line from gamma = 0 to ALG."""
  titles = [title for title in study.names if study.numbers(title, "alg")]
  figure = charts.new_figure(8.6, 6.4)
  axes = figure.add_subplot()
  for title in titles:
    color, marker = study.colors[title], study.markers[title]
    (x0,), (y0,) = _point(study, title, "none")
    (x1,), (y1,) = _point(study, title, "alg")
    axes.plot([x0, x1], [y0, y1], color=color, linewidth=1.2, zorder=2)
    for x, y, filled in ((x0, y0, False), (x1, y1, True)):
      chart_elements.point(axes, x, y, color=color, marker=marker, filled=filled, size=8)
  axes.margins(0.08)
  axes.set_xlabel(SEEN, fontsize=charts.SIZE)
  axes.set_ylabel(ABSENT, fontsize=charts.SIZE)
  charts.clean(axes, grid="both")
  entries = [
    (
      chart_elements.point_entry(study.colors[t], study.markers[t], filled=True),
      words.shorten(t, 28),
    )
    for t in titles
  ]
  entries += [
    (chart_elements.point_entry(style.MUTED, "o", filled=filled), label)
    for filled, label in ((False, "hollow: as it is"), (True, "filled: with ALG"))
  ]
  chart_elements.legend(figure, entries)
  return figure


def nearest_means(study: Study) -> "Figure | None":
  """The head against nearest class means, before and after fine-tuning (figure 3)."""
  numbers = {title: study.numbers(title) for title in study.compared}
  if any(found is None or "ncm" not in found for found in numbers.values()):
    return None
  pairs = {"U/Y": "absent classes, Acc U/Y", "S/Y": "seen classes, Acc S/Y",
           "U/U": "among absent classes, Acc U/U"}  # fmt: skip
  figure = charts.new_figure(9.5, 4.0)
  panels = figure.subplots(1, len(pairs), sharey=True)
  for axes, (pair, title) in zip(panels, pairs.items(), strict=True):
    for place, (name, found) in enumerate(numbers.items()):
      head = found["accuracy"]["micro"][pair]
      means = found["ncm"]["cosine"]["micro"][pair]
      for side, number in ((-0.5, head), (0.5, means)):
        _bar(axes, place + 0.38 * side, 0.36, holistic_records.estimate(number),
             bar_look(study.colors[name], pale=side > 0))  # fmt: skip
    axes.set_xticks(range(len(numbers)), [charts.plain(words.shorten(t, 16)) for t in numbers])
    axes.set_xlim(-0.6, len(numbers) - 0.4)
    axes.set_title(title, fontsize=charts.SIZE, loc="left")
    charts.clean(axes)
    axes.tick_params(axis="x", length=0)
  percent_axes(panels[0], "test accuracy, %")
  panels[0].set_ylim(top=1.06 * panels[0].get_ylim()[1])
  chart_elements.legend(figure, classifier_entries())
  return figure


def classifier_entries() -> list[tuple["Artist", str]]:
  """Legend entries of bars: the head, and nearest class means."""
  from matplotlib import patches

  labels = {False: "the classifier (head)", True: "nearest class means (reads absent images)"}
  return [(patches.Patch(**bar_look(style.MUTED, pale=p)), text) for p, text in labels.items()]


def _bar(axes, x: float, width: float, value: Estimate, look) -> None:
  """An upright bar in per cent, its seeds as dots, its number above."""
  seeds = [100 * seed for seed in value.by_seed]
  axes.bar(x, 100 * value.mean, width, zorder=2, **look)
  seed_dots(axes, x, seeds, width)
  axes.annotate(
    f"{100 * value.mean:.1f}", (x, max([*seeds, 100 * value.mean])), (0, 5), ha="center",
    textcoords="offset points", fontsize=charts.SMALL, color=style.INK,
  )  # fmt: skip


def ausuc_bars(study: Study) -> "Figure":
  """AUSUC of every method of the table (figure 7)."""
  titles = list(study.names)
  figure = charts.new_figure(9.5, 1.3 + 0.36 * len(titles))
  axes = figure.add_subplot()
  for place, title in enumerate(titles):
    numbers = study.numbers(title)
    value = holistic_records.estimate(numbers["ausuc"])
    look = bar_look(study.colors[title], pale=study.is_oracle(title))
    axes.barh(place, value.mean, 0.7, zorder=2, **look)
    seed_dots(axes, place, value.by_seed, 0.7, flat=True)
    if value.interval:
      for color, width in (("white", 3.5), (style.INK, 1.5)):  # to be seen on any bar
        axes.plot(value.interval, [place] * 2, color=color, linewidth=width, zorder=4)
    if "ncm" in numbers:
      mean = numbers["ncm"]["cosine"]["ausuc"]["mean"]
      axes.plot([mean], [place], "D", color=style.INK, markerfacecolor="white", markersize=5.5,
                zorder=6)  # fmt: skip
    # In a column of their own: behind a bar they would stand at another mark of its row.
    axes.annotate(f"{value.mean:.3f}", (1.01, place), xycoords=("axes fraction", "data"),
                  va="center", fontsize=charts.SMALL, color=style.INK)  # fmt: skip
  axes.annotate("the classifier", (1.01, 1.0), xycoords="axes fraction", va="bottom",
                fontsize=charts.SMALL, color=style.INK)  # fmt: skip
  chart_elements.row_ticks(axes, titles)
  axes.set_ylim(len(titles) - 0.4, -0.6)
  axes.set_xlim(0, 1.08 * axes.get_xlim()[1])
  axes.set_xlabel("AUSUC, area under the seen-unseen curve", fontsize=charts.SIZE)
  charts.clean(axes, grid="x")
  axes.tick_params(axis="y", length=0)
  chart_elements.legend(figure, _ausuc_entries(any(map(study.is_oracle, titles))))
  return figure


def _ausuc_entries(oracle: bool):
  from matplotlib import patches

  entries = [
    (patches.Patch(**bar_look(style.MUTED)), "the classifier"),
    (chart_elements.point_entry(style.INK, "D", filled=False, size=5.5), "by nearest class means"),
  ]
  if oracle:
    entries.append((patches.Patch(**bar_look(style.MUTED, pale=True)), "oracle: trained on all"))
  return entries
