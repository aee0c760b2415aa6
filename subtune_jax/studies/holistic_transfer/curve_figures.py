"""The figures of a study of holistic transfer along a training, and of the classifier's weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from subtune_jax.report import charts, heat_map, marks, style
from subtune_jax.studies.holistic_transfer import record as holistic_records

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Study = holistic_records.Study
Row = holistic_records.Row
Found = Mapping[str, Sequence[Sequence[Row]]]  # trainings of methods, each a row an epoch
_SOLID, _DASHED = ("-", "o"), (style.DASHED, "D")
# Of the logits of absent test images: key -> label, colour, dashes, marker.
_MARGINS = {
  "own": ("label's class", "#009E73", "-", "o"),
  "other": ("largest other absent class", "#56B4E9", style.DASHED, "s"),
  "seen": ("largest seen class", "#D55E00", style.DOTTED, "^"),
}
_GAPS = {
  "own_over_other": ("label's over the largest other absent class", "#0072B2", "-", "o"),
  "seen_over_absent": ("largest seen over largest absent class", "#CC79A7", style.DASHED, "^"),
}


def _line(
  axes, trainings: Sequence[Sequence[Row]], read: Callable[[Row], float | None], color: str,
  dashes: Any, marker: str, scale: float = 100.0,
) -> None:  # fmt: skip
  """A number from the source model on; nothing if one is missing."""
  curves = scale * holistic_records.values(trainings, read)
  if not np.isnan(curves).any():
    marks.lines(axes, range(curves.shape[1]), curves, color, marker, dashes=dashes)


def _finish(axes, found: Found, title: str, label: str) -> None:
  """Labels, and ticks at whole epochs."""
  last = max(len(epochs) for trainings in found.values() for epochs in trainings) - 1
  charts.whole_epochs(axes)
  axes.set_xlim(0, last + 0.15)
  charts.label(axes, title, x="epoch (0: the source model)", y=label)


def _by_method(
  study: Study, found: Found, titles: Sequence[str], label: str, reads: Any, kinds: Sequence[str]
) -> "tuple[Figure, list[Axes]]":
  """Two panels of a colour for each method, its first number solid, its second one dashed.

  Args:
    study: the study.
    found: the trainings of each method.
    titles: of the panels.
    label: of their y axis.
    reads: for each panel two functions of an epoch's row.
    kinds: what solid and dashed lines are.
  """
  figure, panels = charts.panels(2, 9.5, 4.2, sharey=True)
  for axes, title, own in zip(panels, titles, reads, strict=True):
    for method, trainings in found.items():
      for read, (dashes, marker) in zip(own, (_SOLID, _DASHED), strict=True):
        _line(axes, trainings, read, study.colors[study.title(method)], dashes, marker)
    _finish(axes, found, title, label if axes is panels[0] else "")
  named = [study.title(method) for method in found] if len(found) > 1 else []
  entries = [(marks.key(study.colors[title], dashes="-"), title) for title in named]
  entries += [(marks.key(style.INK, dashes=dashes), kind)
              for kind, (dashes, _) in zip(kinds, (_SOLID, _DASHED), strict=True)]  # fmt: skip
  charts.legend(figure, entries)
  return figure, panels


def absent_accuracy(study: Study) -> "Figure | None":
  """Accuracy on absent classes along training, by the head and by nearest means (figure 4)."""
  found = study.along()
  if not found:
    return None
  reads = [(lambda e, p=pair: e["accuracy"]["none"]["micro"][p], lambda e, p=pair: _nearest(e, p))
           for pair in ("U/U", "U/Y")]  # fmt: skip
  titles = ("among absent classes, Acc U/U", "among all classes, Acc U/Y")
  kinds = ("the classifier (head)", "nearest class means (reads absent images)")
  label = "accuracy on absent\nclasses, %"
  figure, panels = _by_method(study, found, titles, label, reads, kinds)
  panels[0].set_ylim(bottom=0)
  return figure


def _nearest(epoch: Row, pair: str) -> float | None:
  return epoch["ncm"]["cosine"]["micro"][pair] if epoch.get("ncm") else None


def absent_probability(study: Study) -> "Figure | None":
  """P(U|x) and the share answered with an absent class along training (figures 5 and 6)."""
  found = study.along()
  if not found:
    return None
  reads = [[lambda e, k=key, g=group: e["probabilities"][g][k] for group in ("absent", "seen")]
           for key in ("p_absent", "answered_absent")]  # fmt: skip
  titles = ("probability of the absent classes, P(U|x)", "share answered with an absent class")
  kinds = ("test images of absent classes", "test images of seen classes")
  label = "% (mean over test images)"
  figure, panels = _by_method(study, found, titles, label, reads, kinds)
  panels[0].set_ylim(0, min(100, 1.08 * panels[0].get_ylim()[1]))
  return figure


def margins(study: Study) -> "Figure | None":
  """Mean logits of absent test images along fine-tuning, and their differences (figure 11)."""
  found = {method: rows for method, rows in study.along().items() if method == "ft"}
  if not found:
    return None
  figure, panels = charts.panels(2, 9.5, 4.6)
  parts = (_MARGINS, "mean logits", "logit"), (_GAPS, "mean differences", "")
  for axes, (kinds, title, label) in zip(panels, parts, strict=True):
    for kind, (_, *look) in kinds.items():
      _line(axes, found["ft"], lambda e, k=kind: e["margins"][k], *look, scale=1.0)
    _finish(axes, found, title, label)
    handles = [
      marks.key(color, marker, dashes=dashes) for _, color, dashes, marker in kinds.values()
    ]
    axes.legend(
      handles, [label for label, *_ in kinds.values()], loc="upper left", frameon=False,
      bbox_to_anchor=(-0.02, -0.15), fontsize=charts.SIZE - 0.5, handlelength=3.2,
    )  # fmt: skip
  panels[1].axhline(0, color=style.MUTED, linewidth=0.9, zorder=1)
  return figure


def directions(study: Study) -> "Figure | None":
  """Cosines between the updates of the classes' weights, seen then absent (figure 10)."""
  networks = study.networks("main", "ft")
  if not networks:
    return None
  from matplotlib import colors

  cosine, num_seen = _cosines(study, networks[0])
  figure, (axes,) = charts.panels(1, 8.4, 7.0)
  image = axes.imshow(
    cosine, cmap="PuOr_r", norm=colors.Normalize(-1, 1), interpolation="nearest", aspect="equal"
  )
  for draw in (axes.axhline, axes.axvline):
    draw(num_seen - 0.5, color=style.INK, linewidth=1.4)
  count = len(cosine)
  places = [(num_seen - 1) / 2, (num_seen + count - 1) / 2]
  labels = [f"{num_seen} seen classes", f"{count - num_seen} absent classes"]
  axes.set_xticks(places, labels, fontsize=charts.SIZE)
  axes.set_yticks(places, labels, fontsize=charts.SIZE, rotation=90, va="center")
  axes.tick_params(length=0, colors=style.INK)
  axes.spines[:].set_visible(False)
  heat_map.color_bar(image, [axes], "cosine of the two updates")
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
