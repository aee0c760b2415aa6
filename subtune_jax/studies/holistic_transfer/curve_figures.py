"""The figures of a study of holistic transfer along a training, and of the classifier's weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import chart_elements, charts, style, words
from subtune_jax.studies.holistic_transfer import record as holistic_records

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Study = holistic_records.Study
Row = holistic_records.Row
DASHES = (0, (4, 2))
_THIN = {"linewidth": 0.7, "alpha": 0.4}


def _line(
  axes,
  trainings: Sequence[Sequence[Row]],
  read: Callable[[Row], float | None],
  color: str,
  *,
  dashes: object = "-",
  scale: float = 100.0,
  marker: str = "",
) -> None:
  """A number from the source model on: seeds thin, their mean thick; nothing if one is missing."""
  curves = scale * holistic_records.values(trainings, read)
  if np.isnan(curves).any():
    return
  xs, look = range(curves.shape[1]), {"color": color, "linestyle": dashes}
  if len(curves) > 1:
    axes.plot(xs, curves.T, **look, **_THIN)
  axes.plot(xs, curves.mean(0), linewidth=2.0, zorder=3, marker=marker, markersize=5, **look)


def _finish(axes, label: str, title: str = "", *, last: int) -> None:
  """Labels, and ticks at whole epochs."""
  from matplotlib import ticker

  axes.xaxis.set_major_locator(ticker.MaxNLocator(8, integer=True, min_n_ticks=1))
  axes.set_xlim(0, last + 0.15)
  axes.set_xlabel("epoch (0: the source model)", fontsize=charts.SIZE)
  axes.set_ylabel(label, fontsize=charts.SIZE)
  axes.set_title(title, fontsize=charts.SIZE, loc="left")
  charts.clean(axes)


def _last(found: Mapping[str, Sequence[Sequence[Row]]]) -> int:
  return max(len(epochs) for trainings in found.values() for epochs in trainings) - 1


def _method_entries(study: Study, found: Mapping[str, object]):
  return [
    (
      chart_elements.level_entry(study.colors[study.title(m)], "-"),
      words.shorten(study.title(m), 28),
    )
    for m in found
  ]


def absent_accuracy(study: Study) -> "Figure | None":
  """Accuracy on absent classes along training, by the head and by nearest means (figure 4)."""
  found = study.along()
  if not found:
    return None
  figure = charts.new_figure(9.5, 4.2)
  panels = figure.subplots(1, 2, sharey=True)
  titles = {"U/U": "among absent classes, Acc U/U", "U/Y": "among all classes, Acc U/Y"}
  for axes, (pair, title) in zip(panels, titles.items(), strict=True):
    for method, trainings in found.items():
      color = study.colors[study.title(method)]
      _line(axes, trainings, lambda e, p=pair: e["accuracy"]["none"]["micro"][p], color, marker="o")
      _line(axes, trainings, lambda e, p=pair: _nearest(e, p), color, dashes=DASHES, marker="D")
    _finish(axes, "accuracy on absent\nclasses, %" if pair == "U/U" else "", title,
            last=_last(found))  # fmt: skip
  panels[0].set_ylim(bottom=0)
  entries = _method_entries(study, found) if len(found) > 1 else []
  entries += [
    (chart_elements.level_entry(style.INK, "-"), "the classifier (head)"),
    (chart_elements.level_entry(style.INK, DASHES), "nearest class means (reads absent images)"),
  ]
  chart_elements.legend(figure, entries)
  return figure


def _nearest(epoch: Row, pair: str) -> float | None:
  return epoch["ncm"]["cosine"]["micro"][pair] if epoch.get("ncm") else None


def absent_probability(study: Study) -> "Figure | None":
  """P(U|x) and the share answered with an absent class along training (figures 5 and 6)."""
  found = study.along()
  if not found:
    return None
  figure = charts.new_figure(9.5, 4.2)
  panels = figure.subplots(1, 2, sharey=True)
  titles = {"p_absent": "probability of the absent classes, P(U|x)",
            "answered_absent": "share answered with an absent class"}  # fmt: skip
  for axes, (key, title) in zip(panels, titles.items(), strict=True):
    for method, trainings in found.items():
      color = study.colors[study.title(method)]
      for group, dashes in (("absent", "-"), ("seen", DASHES)):
        _line(axes, trainings, lambda e, g=group, k=key: e["probabilities"][g][k], color,
              dashes=dashes, marker="o" if group == "absent" else "s")  # fmt: skip
    _finish(axes, "% (mean over test images)" if key == "p_absent" else "", title,
            last=_last(found))  # fmt: skip
  panels[0].set_ylim(0, min(100, 1.08 * panels[0].get_ylim()[1]))
  entries = _method_entries(study, found) if len(found) > 1 else []
  entries += [
    (chart_elements.level_entry(style.INK, "-"), "test images of absent classes"),
    (chart_elements.level_entry(style.INK, DASHES), "test images of seen classes"),
  ]
  chart_elements.legend(figure, entries)
  return figure


# Of the logits of absent test images: key -> label, colour, dashes, marker.
_MARGINS = {
  "own": ("label's class", "#009E73", "-", "o"),
  "other": ("largest other absent class", "#56B4E9", DASHES, "s"),
  "seen": ("largest seen class", "#D55E00", (0, (1, 1.2)), "^"),
}
_GAPS = {
  "own_over_other": ("label's over the largest other absent class", "#0072B2", "-", "o"),
  "seen_over_absent": ("largest seen over largest absent class", "#CC79A7", DASHES, "^"),
}


def margins(study: Study) -> "Figure | None":
  """Mean logits of absent test images along fine-tuning, and their differences (figure 11)."""
  found = study.along()
  if "ft" not in found:
    return None
  figure = charts.new_figure(9.5, 4.6)
  panels = figure.subplots(1, 2)
  for axes, kinds, title in (
    (panels[0], _MARGINS, "mean logits"), (panels[1], _GAPS, "mean differences")
  ):  # fmt: skip
    for key, (_, color, dashes, marker) in kinds.items():
      _line(axes, found["ft"], lambda e, k=key: e["margins"][k], color, dashes=dashes,
            marker=marker, scale=1.0)  # fmt: skip
    _finish(axes, "logit" if kinds is _MARGINS else "", title, last=_last({"ft": found["ft"]}))
    _own_legend(axes, kinds)
  panels[1].axhline(0, color=style.MUTED, linewidth=0.9, zorder=1)
  return figure


def _own_legend(axes, kinds) -> None:
  """A legend below the axes."""
  from matplotlib import lines

  handles = [
    lines.Line2D([], [], color=color, linestyle=dashes, marker=marker, markersize=5, linewidth=2)
    for _, color, dashes, marker in kinds.values()
  ]
  axes.legend(
    handles, [label for label, *_ in kinds.values()], loc="upper left", frameon=False,
    bbox_to_anchor=(-0.02, -0.15), fontsize=charts.SIZE - 0.5, handlelength=3.2,
  )  # fmt: skip


def directions(study: Study) -> "Figure | None":
  """Cosines between the updates of the classes' weights, seen then absent (figure 10)."""
  networks = study.networks("main", "ft")
  if not networks:
    return None
  from matplotlib import colors

  cosine, num_seen = _cosines(study, networks[0])
  figure = charts.new_figure(8.4, 7.0)
  axes = figure.add_subplot()
  image = axes.imshow(
    cosine, cmap="PuOr_r", norm=colors.Normalize(-1, 1), interpolation="nearest", aspect="equal"
  )
  edge = num_seen - 0.5
  for draw in (axes.axhline, axes.axvline):
    draw(edge, color=style.INK, linewidth=1.4)
  count = len(cosine)
  places = [(num_seen - 1) / 2, (num_seen + count - 1) / 2]
  labels = [f"{num_seen} seen classes", f"{count - num_seen} absent classes"]
  axes.set_xticks(places, labels, fontsize=charts.SIZE)
  axes.set_yticks(places, labels, fontsize=charts.SIZE, rotation=90, va="center")
  axes.tick_params(length=0, colors=style.INK)
  axes.spines[:].set_visible(False)
  bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02)
  bar.set_label("cosine of the two updates", fontsize=charts.SIZE)
  bar.ax.tick_params(labelsize=charts.SMALL)
  bar.outline.set_visible(False)
  return figure


def _cosines(study: Study, network: Row) -> tuple[np.ndarray, int]:
  """([C, C] with the seen classes first, how many those are) of a training's last epoch."""
  from subtune_jax.calibration import updates  # needs jax, which a report is read without

  name = "head/kernel"
  before = study.networks("pretrained")[0]["epochs"][-1]["file"]
  kernels = [study.arrays(file, (name,))[name] for file in (before, network["epochs"][-1]["file"])]
  place = study.partition(network)
  order = [*place["seen"], *place["absent"]]
  cosine = updates.classifier_updates(*kernels).cosine
  return cosine[np.ix_(order, order)], len(place["seen"])
