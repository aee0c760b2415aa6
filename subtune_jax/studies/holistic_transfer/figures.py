"""The figures of a study of holistic transfer that compare networks.

Those along a training, and of the classifier's weights, are in `curve_figures`; those of sizes,
optimisers and units in `sweep_figures`.
"""

from typing import TYPE_CHECKING

from subtune_jax.report import charts, marks, style, words
from subtune_jax.studies.holistic_transfer import record as holistic_records

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Study = holistic_records.Study
CALIBRATED = {"none": "o", "alg": "D", "pcv": "^", "star": "*"}
LABELS = {
  "none": "as it is (gamma = 0)", "alg": "ALG", "pcv": "PCV", "star": "gamma*: best on test, oracle"
}  # fmt: skip
SEEN, ABSENT = "accuracy on seen classes, Acc S/Y, %", "accuracy on absent classes, Acc U/Y, %"
HEAD, NEAREST = "the classifier (head)", "nearest class means (reads absent images)"
_SIZES = {"none": 9, "alg": 8.5, "pcv": 11, "star": 15}


def plane(study: Study) -> "Figure":
  """Acc_S/Y against Acc_U/Y: the curves of the source model and of fine-tuning (figure 2)."""
  figure, (axes,) = charts.panels(1, 8.6, 6.2)
  points = {}
  for method, title in zip(("pretrained", "ft"), study.compared, strict=True):
    color, curves = study.colors[title], study.curves(method)
    for curve in curves if len(curves) > 1 else ():
      axes.plot(100 * curve.seen, 100 * curve.unseen, color=color, **marks.THIN)
    seen, unseen = holistic_records.mean_curve(curves)
    axes.plot(100 * seen, 100 * unseen, color=color, linewidth=2.0, zorder=3)
    points[title] = {k: at for k in CALIBRATED if (at := _point(study, title, k)) is not None}
    for kind, at in points[title].items():
      inside, edge = ("white", color) if kind == "star" else (color, "white")
      axes.plot(
        *at, marker=CALIBRATED[kind], markersize=_SIZES[kind], linestyle="none", zorder=5,
        color=color, markerfacecolor=inside, markeredgecolor=edge, markeredgewidth=1.2,
        clip_on=False,
      )  # fmt: skip
  axes.set(xlim=(0, None), ylim=(0, None))
  charts.label(axes, x=SEEN, y=ABSENT, grid="both")
  entries = [(marks.key(study.colors[title], dashes="-"), title) for title in study.compared]
  entries += [
    (marks.key(style.MUTED, marker, filled=k != "star", size=0.8 * _SIZES[k]), LABELS[k])
    for k, marker in CALIBRATED.items() if any(k in own for own in points.values())
  ]  # fmt: skip
  charts.legend(figure, entries)
  return figure


def _point(study: Study, title: str, kind: str) -> tuple[float, float] | None:
  numbers = study.numbers(title, kind)
  if numbers is None:
    return None
  micro = numbers["accuracy"]["micro"]
  return 100 * micro["S/Y"]["mean"], 100 * micro["U/Y"]["mean"]


def plane_methods(study: Study) -> "Figure":
  """Every method in the plane of Acc_S/Y and Acc_U/Y, a line from gamma = 0 to ALG."""
  looks = {t: (study.colors[t], study.markers[t]) for t in study.names if study.numbers(t, "alg")}
  figure, (axes,) = charts.panels(1, 8.6, 6.4)
  for title, (color, marker) in looks.items():
    plain, calibrated = _point(study, title, "none"), _point(study, title, "alg")
    axes.plot(*zip(plain, calibrated, strict=True), color=color, linewidth=1.2, zorder=2)
    marks.point(axes, *plain, color, marker, filled=False, size=8)
    marks.point(axes, *calibrated, color, marker, size=8)
  axes.margins(0.08)
  charts.label(axes, x=SEEN, y=ABSENT, grid="both")
  kinds = ((False, "hollow: as it is"), (True, "filled: with ALG"))
  charts.legend(figure, [
    *marks.keys(looks, {title: title for title in looks}),
    *((marks.key(style.MUTED, "o", filled=filled), text) for filled, text in kinds),
  ])  # fmt: skip
  return figure


def nearest_means(study: Study) -> "Figure | None":
  """The head against nearest class means, before and after fine-tuning (figure 3)."""
  numbers = {title: study.numbers(title) for title in study.compared}
  if any(found is None or "ncm" not in found for found in numbers.values()):
    return None
  pairs = {"U/Y": "absent classes, Acc U/Y", "S/Y": "seen classes, Acc S/Y",
           "U/U": "among absent classes, Acc U/U"}  # fmt: skip
  figure, panels = charts.panels(len(pairs), 9.5, 4.0, sharey=True)
  for axes, (pair, title) in zip(panels, pairs.items(), strict=True):
    for place, (name, found) in enumerate(numbers.items()):
      for pale, own in ((False, found["accuracy"]), (True, found["ncm"]["cosine"])):
        value = holistic_records.estimate(own["micro"][pair])
        marks.bar(
          axes, place + (0.19 if pale else -0.19), 100 * value.mean, 0.36, study.colors[name],
          pale=pale, seeds=[100 * seed for seed in value.by_seed], text=f"{100 * value.mean:.1f}",
        )  # fmt: skip
    axes.set_xticks(range(len(numbers)), [charts.plain(words.shorten(t, 16)) for t in numbers])
    axes.set_xlim(-0.6, len(numbers) - 0.4)
    charts.label(axes, title, y="test accuracy, %" if axes is panels[0] else "")
    axes.tick_params(axis="x", length=0)
  panels[0].set_ylim(0, 1.06 * panels[0].get_ylim()[1])
  charts.legend(figure, [(marks.bar_key(), HEAD), (marks.bar_key(pale=True), NEAREST)])
  return figure


def ausuc_bars(study: Study) -> "Figure":
  """AUSUC of every method of the table (figure 7)."""
  titles = list(study.names)
  figure, (axes,) = charts.panels(1, 9.5, 1.3 + 0.36 * len(titles))
  for place, title in enumerate(titles):
    numbers = study.numbers(title)
    value = holistic_records.estimate(numbers["ausuc"])
    marks.bar(
      axes, place, value.mean, 0.7, study.colors[title], pale=study.is_oracle(title),
      seeds=value.by_seed, ends=value.interval or (), flat=True,
    )  # fmt: skip
    if "ncm" in numbers:
      mean = numbers["ncm"]["cosine"]["ausuc"]["mean"]
      marks.point(axes, mean, place, style.INK, "D", filled=False, size=5.5, zorder=6)
    # In a column of their own: behind a bar they would stand at another mark of its row.
    own = {"xycoords": ("axes fraction", "data"), "va": "center"}
    charts.note(axes, f"{value.mean:.3f}", (1.01, place), **own)
  charts.note(axes, "the classifier", (1.01, 1.0), xycoords="axes fraction", va="bottom")
  charts.row_ticks(axes, titles)
  axes.set_xlim(0, 1.08 * axes.get_xlim()[1])
  charts.label(axes, x="AUSUC, area under the seen-unseen curve", grid="x")
  nearest = marks.key(style.INK, "D", filled=False, size=5.5)
  entries = [(marks.bar_key(), "the classifier"), (nearest, "by nearest class means")]
  if any(map(study.is_oracle, titles)):
    entries.append((marks.bar_key(pale=True), "oracle: trained on all"))
  charts.legend(figure, entries)
  return figure
