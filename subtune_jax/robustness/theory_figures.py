"""The picture of the two-dimensional linear model: features, models and errors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from subtune_jax.report import charts, marks, style

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_COLORS = style.colors(["lp", "ft", "lp_ft"])
_MARKERS: dict[str, Any] = style.markers(list(style.METHOD_COLORS))
_DATA = "#9A9A9A"
_RING = 11  # LP around LP-FT, which ends at the same point
_POINTS = ("inputs", "target", "pretrained", "lp", "lp_ft", "ft", "ft_features")
_HEAD_DASHES = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (5, 2, 1, 2)))


def toy(picture: Mapping[str, Any]) -> "Figure":
  """Three panels: what B becomes, what v B becomes, and the OOD error against time.

  Args:
    picture: the fields of `robustness.linear_toy.Toy`, by name.

  Returns:
    A matplotlib figure. Fine-tuning has one line per head, which is written at it.
  """
  figure, (features, models, errors) = charts.panels(3, 11.6, 4.1)
  _draw_features(features, picture)
  _draw_models(models, picture)
  _draw_errors(errors, picture)
  errors.set_box_aspect(np.ptp(models.get_ylim()) / np.ptp(models.get_xlim()))
  entries = [
    (marks.key(_COLORS["lp"], "o", filled=False, size=_RING), "LP"),
    (marks.key(_COLORS["lp_ft"], _MARKERS["lp_ft"], size=5.5), "LP-FT"),
    (marks.key(_COLORS["ft"], _MARKERS["ft"], size=6.5), "FT, from random heads v0"),
    (marks.key(style.INK, "*", size=11), "w*, which made the labels"),
    (marks.key(_DATA, "o", size=4), "training inputs (ID)"),
  ]
  charts.legend(figure, entries)
  return figure


def _number(value: float) -> str:
  return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def _head(picture: Mapping[str, Any], number: int) -> str:
  return f"v0 = {_number(picture['heads'][number])}"


def _dashes(number: int):
  return _HEAD_DASHES[number % len(_HEAD_DASHES)]


def _plane(axes, picture: Mapping[str, Any], title: str) -> None:
  """Axes through the origin with the inputs on x."""
  below, beside = "direction of all inputs", "direction that no input has"
  charts.label(axes, title, x=below, y=beside, grid="")
  axes.axhline(0, color=style.GRID, linewidth=1, zorder=0)
  axes.axvline(0, color=style.GRID, linewidth=1, zorder=0)
  inputs = np.asarray(picture["inputs"])
  axes.plot(inputs[:, 0], inputs[:, 1], "o", color=_DATA, markersize=4, zorder=1)
  points = np.concatenate([np.reshape(picture[key], (-1, 2)) for key in _POINTS])
  room = 0.3
  axes.set_xlim(points[:, 0].min() - room, points[:, 0].max() + room)
  axes.set_ylim(points[:, 1].min() - room, points[:, 1].max() + room)
  axes.set_aspect("equal", adjustable="box")


def _draw_features(axes, picture: Mapping[str, Any]) -> None:
  """B at the start and at the end of each fine-tuning: on one horizontal line."""
  _plane(axes, picture, "features B: FT moves them\nalong the inputs only")
  start, paths = np.asarray(picture["pretrained"]), np.asarray(picture["ft_features"])
  axes.axhline(start[1], color=style.MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
  for number, path in enumerate(paths):
    end = path[-1]
    axes.plot([0, end[0]], [0, end[1]], color=_COLORS["ft"], linewidth=1.6,
              linestyle=_dashes(number), zorder=2)  # fmt: skip
    axes.plot(*end, marker=_MARKERS["ft"], color=_COLORS["ft"], markersize=6.5, zorder=3)
    side = "right" if end[0] < start[0] else "left"
    charts.note(axes, _head(picture, number), end, (0, 7), color=_COLORS["ft"], ha=side)
  arrow = {"arrowstyle": "-|>", "color": style.INK, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0}
  axes.annotate("", xy=start, xytext=(0, 0), arrowprops=arrow, zorder=4)
  charts.note(axes, "B0, which LP keeps", tuple(start), (0, 20), ha="center")


def _draw_models(axes, picture: Mapping[str, Any]) -> None:
  """v B of all methods, with the line of those that fit the inputs."""
  _plane(axes, picture, "models w = v B: all end on the line\nthat fits the inputs")
  target, start = np.asarray(picture["target"]), np.asarray(picture["pretrained"])
  axes.axvline(target[0], color=style.MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
  axes.axline((0, 0), slope=start[1] / start[0], color=style.MUTED, linewidth=1, zorder=0)
  for number, path in enumerate(np.asarray(picture["ft"])):
    axes.plot(path[:, 0], path[:, 1], color=_COLORS["ft"], linewidth=1.6,
              linestyle=_dashes(number), zorder=2)  # fmt: skip
    side = "right" if path[0, 0] < target[0] else "left"
    shift = (-6 if side == "right" else 6, -3)
    charts.note(axes, _head(picture, number), path[0], shift, color=_COLORS["ft"], ha=side)
    axes.plot(*path[0], marker="|", color=_COLORS["ft"], markersize=10, zorder=2)
    axes.plot(*path[-1], marker=_MARKERS["ft"], color=_COLORS["ft"], markersize=6.5, zorder=3)
  axes.plot(*target, marker="*", color=style.INK, markersize=12, zorder=5)
  x, y = picture["lp"]
  marks.point(axes, x, y, _COLORS["lp"], "o", filled=False, size=_RING)
  x, y = picture["lp_ft"]
  marks.point(axes, x, y, _COLORS["lp_ft"], _MARKERS["lp_ft"], size=5.5, zorder=5)
  charts.note(axes, "fits all inputs", (target[0], axes.get_ylim()[0]), (5, 5), color=style.MUTED)
  charts.note(axes, "multiples of B0", tuple(0.35 * start), (-7, 2), color=style.MUTED, ha="right")


def _draw_errors(axes, picture: Mapping[str, Any]) -> None:
  """OOD error of fine-tuning against time, LP and LP-FT as levels."""
  times, color = np.asarray(picture["times"]), _COLORS["ft"]
  for number, error in enumerate(np.asarray(picture["ft_error"])):
    axes.plot(times[1:], error[1:], color=color, linewidth=1.6, linestyle=_dashes(number), zorder=2)
    charts.note(axes, _head(picture, number), (times[1], error[1]), (2, 5), color=color)
    end = marks.point(axes, times[-1], error[-1], color, _MARKERS["ft"], size=6.5, zorder=3)
    end.set_clip_on(False)
  axes.axhline(picture["lp_error"], color=_COLORS["lp"], linewidth=1.4, zorder=1)
  for method, filled, size, zorder in (("lp", False, _RING, 4), ("lp_ft", True, 5.5, 5)):
    height, color, marker = picture[f"{method}_error"], _COLORS[method], _MARKERS[method]
    look: dict[str, Any] = {"filled": filled, "size": size, "zorder": zorder}
    marks.point(axes, times[-1], height, color, marker, **look).set_clip_on(False)
  axes.set_xscale("log")
  axes.set_yscale("log")
  axes.set_ymargin(0.12)
  title = "OOD error: FT's depends on its head,\nhowever early it is stopped"
  below, beside = "time of the gradient flow", "mean squared error, all directions"
  charts.label(axes, title, x=below, y=beside)
