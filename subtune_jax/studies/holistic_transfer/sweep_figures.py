"""The figures of the further studies: seen classes, optimisers, SubTuning of each unit."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import chart_elements, charts, style, words
from subtune_jax.studies.holistic_transfer import figures as holistic_plots
from subtune_jax.studies.holistic_transfer import record as holistic_records

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Study = holistic_records.Study
Row = holistic_records.Row
DASHES, _DOTTED = (0, (4, 2)), (0, (1, 1.3))
# How the seen classes were drawn: title, colour, marker.
_HOWS = {
  "random": ("at random", "#0072B2", "o"),
  "group": ("whole groups", "#D55E00", "s"),
  "given": ("as given", "#009E73", "D"),
}
_PER_ROW = 3


def size_networks(study: Study) -> list[Row]:
  """Fine-tuning on every number of seen classes, that of the table among them; or nothing."""
  sizes = study.networks("size")
  return [*study.networks("main", "ft"), *sizes] if sizes else []


def sizes(study: Study) -> "Figure | None":
  """Number and structure of the seen classes, on the classes absent from all (figure 8)."""
  networks = [n for n in size_networks(study) if n.get("common")]
  if not networks:
    return None
  figure = charts.new_figure(9.5, 4.4)
  panels = figure.subplots(1, 2, sharey=True)
  hows = [how for how in _HOWS if any(study.partition(n)["how"] == how for n in networks)]
  titles = {"Y": "among all classes", "own": "among these absent classes"}
  source = _source_common(study, networks)
  numbers = sorted({study.partition(n)["num_seen"] for n in networks})
  apart = 0.008 * (numbers[-1] - numbers[0])
  for axes, (space, title) in zip(panels, titles.items(), strict=True):
    for place, how in enumerate(hows):
      own = [n for n in networks if study.partition(n)["how"] == how]
      for kind in ("head", "ncm"):
        _draw_sizes(study, axes, own, kind, space, apart * (2 * place - len(hows) + 1))
    for kind, dashes in (("head", "-"), ("ncm", DASHES)):
      axes.axhline(100 * source[kind][space], color=style.METHOD_COLORS["pretrained"],
                   linestyle=dashes, linewidth=1.3, zorder=1)  # fmt: skip
    axes.set_title(title, fontsize=charts.SIZE, loc="left")
    axes.set_xlabel("classes fine-tuned on", fontsize=charts.SIZE)
    axes.set_xticks(numbers)
    charts.clean(axes)
  holistic_plots.percent_axes(panels[0], "accuracy on the shared\nabsent classes, %")
  entries = [
    (chart_elements.point_entry(_HOWS[h][1], _HOWS[h][2], filled=True), f"seen: {_HOWS[h][0]}")
    for h in hows
  ]
  entries += [
    (chart_elements.level_entry(style.METHOD_COLORS["pretrained"], "-"), "source model"),
    (chart_elements.level_entry(style.INK, "-"), "the classifier"),
    (chart_elements.level_entry(style.INK, DASHES), "nearest class means"),
  ]
  chart_elements.legend(figure, entries)
  return figure


def _draw_sizes(
  study: Study, axes, networks: Sequence[Row], kind: str, space: str, shift: float
) -> None:
  """One line over the numbers of seen classes, `shift` aside; dots are seeds."""
  points: dict[int, list[float]] = {}
  for network in networks:
    place = study.partition(network)
    if kind in network["common"]:
      points.setdefault(place["num_seen"], []).append(100 * network["common"][kind][space])
  if not points:
    return
  _, color, marker = _HOWS[study.partition(networks[0])["how"]]
  places = [x + shift for x in sorted(points)]
  values = [points[x] for x in sorted(points)]
  face = color if kind == "head" else "white"
  axes.plot(places, [np.mean(v) for v in values], color=color, marker=marker, markersize=6,
            linewidth=1.8, linestyle="-" if kind == "head" else DASHES, zorder=3,
            markerfacecolor=face)  # fmt: skip
  for place, seeds in zip(places, values, strict=True):
    if len(seeds) > 1:
      axes.scatter([place] * len(seeds), seeds, s=11, facecolors=face, edgecolors=color,
                   linewidths=0.7, alpha=0.7)  # fmt: skip


def _source_common(study: Study, networks: Sequence[Row]) -> dict[str, dict[str, float]]:
  """The source model's accuracies on the shared absent classes, mean over seeds."""
  from subtune_jax import calibration  # needs jax, which a report is read without

  names = [f"{part}/{what}" for part in ("test", "train") for what in ("labels", "features")]
  stored = study.arrays(
    study.networks("pretrained")[0]["epochs"][-1]["file"], (*names, "test/logits")
  )
  count = len(study.class_names)
  means, counts = calibration.class_means(stored["train/features"], stored["train/labels"], count)
  scores = {
    "head": stored["test/logits"],
    "ncm": calibration.ncm_logits(stored["test/features"], means, counts),
  }
  found: dict[str, dict[str, list[float]]] = {k: {"Y": [], "own": []} for k in scores}
  for seed in sorted({network["seed"] for network in networks}):
    shared = study.common(seed)
    spaces = np.stack([np.ones(count, bool), shared])
    for kind, z in scores.items():
      matrix = calibration.accuracy_matrix(z, stored["test/labels"], shared[None], spaces)
      found[kind]["Y"].append(float(matrix[0, 0]))
      found[kind]["own"].append(float(matrix[0, 1]))
  return {k: {s: float(np.mean(v)) for s, v in by.items()} for k, by in found.items()}


def sweep(study: Study) -> "Figure | None":
  """AUSUC of fine-tuning by optimiser, learning rate and weight decay (figure 9)."""
  rows = [n for n in study.body["networks"] if n["use"] == "sweep"]
  if not rows:
    return None
  cells = {_sweep_place(row): row for row in rows}
  optimizers, decays, rates = (
    list(dict.fromkeys(place[0] for place in cells)),
    *(sorted({place[i] for place in cells}) for i in (1, 2)),
  )
  columns = min(len(optimizers), _PER_ROW)
  bands = -(-len(optimizers) // columns)
  height = 0.42 * len(decays) + 0.95
  width = max(columns * (0.62 * len(rates) + 0.5) + 2.2, 6.5)
  figure = charts.new_figure(width, 0.5 + height * bands)
  panels = figure.subplots(bands, columns, squeeze=False, sharex=True, sharey=True).ravel()
  known = [100 * row["epochs"][-1]["ausuc"] for row in rows if row["epochs"]]
  look = chart_elements.accuracy_colors(np.array(known or [0.0]))
  image = None
  for axes, optimizer in zip(panels, optimizers, strict=False):
    image = _draw_sweep(axes, optimizer, decays, rates, cells, look)
  for axes in panels[len(optimizers) :]:
    axes.remove()
  for axes in panels[: len(optimizers) : columns]:
    axes.set_ylabel("weight decay", fontsize=charts.SIZE)
  for axes in panels[max(len(optimizers) - columns, 0) : len(optimizers)]:
    axes.set_xlabel("learning rate", fontsize=charts.SIZE)
    axes.tick_params(labelbottom=True)
  bar = figure.colorbar(image, ax=list(panels[: len(optimizers)]), pad=0.015, aspect=25)
  bar.set_label("AUSUC, hundredths", fontsize=charts.SIZE)
  bar.ax.tick_params(labelsize=charts.SMALL)
  bar.outline.set_visible(False)
  chart_elements.legend(
    figure, [(chart_elements.outline_entry(), "highest accuracy on validation images")]
  )
  return figure


def _sweep_place(row: Row) -> tuple[str, float, float]:
  """(optimiser, weight decay, learning rate) of a network of the sweep."""
  _, optimizer, decay = row["method"].split(":")
  return optimizer, float(decay), row["learning_rate"]


def _draw_sweep(
  axes,
  optimizer: str,
  decays: Sequence[float],
  rates: Sequence[float],
  cells: Mapping[tuple[str, float, float], Row],
  look: tuple,
):
  """The heat map of one optimiser, the setting that validation would choose framed."""
  values, best, most = np.full((len(decays), len(rates)), np.nan), None, -1.0
  for i, decay in enumerate(decays):
    for j, rate in enumerate(rates):
      row = cells.get((optimizer, decay, rate))
      if row is not None and row["epochs"]:
        values[i, j] = 100 * row["epochs"][-1]["ausuc"]
        if row["validation_accuracy"] is not None and row["validation_accuracy"] > most:
          best, most = (i, j), row["validation_accuracy"]
  image = chart_elements.heat_map(axes, values, *look, aspect="auto")
  for (i, j), value in np.ndenumerate(values):
    if np.isfinite(value):
      chart_elements.in_cell(axes, image, i, j, value, f"{value:.1f}")
    elif (optimizer, decays[i], rates[j]) in cells:
      axes.text(j, i, "diverged", ha="center", va="center", fontsize=charts.SMALL - 1.5,
                color=style.WARNING)  # fmt: skip
  if best:
    chart_elements.outline(axes, *best)
  axes.set_xticks(range(len(rates)), [words.setting_value(r) for r in rates])
  axes.set_yticks(range(len(decays)), [words.setting_value(d) for d in decays])
  axes.set_title(charts.plain(optimizer), fontsize=charts.SIZE, loc="left", pad=4)
  return image


def block_titles(study: Study) -> dict[str, str]:
  """Title of SubTuning of a unit -> the unit, input to head."""
  return {row["title"]: row["unit"] for row in study.body["blocks"]}


def blocks(study: Study) -> "Figure | None":
  """SubTuning of each unit beside fine-tuning: the gap of the logits, AUSUC, Acc_U/Y."""
  units = block_titles(study)
  if not units:
    return None
  width = chart_elements.page_width(len(units), 0.7)
  figure = charts.new_figure(width, 7.4 + chart_elements.label_room(list(units.values())))
  panels = figure.subplots(3, 1, sharex=True)
  color = style.METHOD_COLORS["subtuning"]
  reads = (
    ("gap of the logits,\ngamma by ALG", lambda n: n["gamma"], "alg", 1.0),
    ("AUSUC", lambda n: n["ausuc"], "none", 1.0),
    ("Acc U/Y, %", lambda n: n["accuracy"]["micro"]["U/Y"], "none", 100.0),
  )
  for axes, (label, read, kind, scale) in zip(panels, reads, strict=True):
    _draw_units(axes, study, list(units), read, kind, scale, color, filled=True)
    for title, dashes in zip(study.compared, (DASHES, "-"), strict=True):
      _level(axes, study, title, read, kind, scale, dashes)
    axes.set_ylabel(label, fontsize=charts.SIZE)
    charts.clean(axes)
  _draw_units(panels[2], study, list(units), reads[2][1], "alg", 100.0, color, filled=False)
  _level(panels[2], study, study.compared[1], reads[2][1], "alg", 100.0, _DOTTED)
  for axes in panels[1:]:
    axes.set_ylim(bottom=0)
  panels[0].set_ylim(bottom=min(0, panels[0].get_ylim()[0]))
  panels[2].set_ylim(top=1.08 * panels[2].get_ylim()[1])
  chart_elements.unit_ticks(panels[2], list(units.values()), width - 1.2)
  panels[2].set_xlim(-0.5, len(units) - 0.5)
  panels[2].set_xlabel("unit trained, input to head", fontsize=charts.SIZE)
  entries = [
    (chart_elements.point_entry(color, "^", filled=True), "SubTuning of the unit"),
    (chart_elements.point_entry(color, "^", filled=False), "the same with ALG"),
  ]
  entries += [
    (chart_elements.level_entry(study.colors[t], dashes), words.shorten(t, 28))
    for t, dashes in zip(study.compared, (DASHES, "-"), strict=True)
  ]
  tuned = study.compared[1]
  entries.append((chart_elements.level_entry(study.colors[tuned], _DOTTED), f"{tuned} with ALG"))
  figure.align_ylabels(panels)
  chart_elements.legend(figure, entries)
  return figure


def _level(axes, study: Study, title: str, read, kind: str, scale: float, dashes) -> None:
  """A line across at the mean of a row of the table, where there is one."""
  numbers = study.numbers(title, kind)
  if numbers is not None:
    axes.axhline(scale * read(numbers)["mean"], color=study.colors[title], linewidth=1.6,
                 linestyle=dashes, zorder=1)  # fmt: skip


def _draw_units(axes, study: Study, titles, read, kind, scale, color, *, filled: bool) -> None:
  """A point per unit, its seeds as dots beside it."""
  found = [holistic_records.estimate(read(study.numbers(t, kind))) for t in titles]
  means = [scale * value.mean for value in found]
  axes.plot(range(len(means)), means, color=color, linewidth=1.3, zorder=2,
            linestyle="-" if filled else DASHES)  # fmt: skip
  for x, value in enumerate(found):
    chart_elements.point(axes, x, means[x], color=color, marker="^", filled=filled)
    if value.interval:
      ends = scale * np.array(value.interval)
      place = x if filled else x - 0.05  # beside the interval of the filled point
      axes.plot([place] * 2, ends, color=color, linewidth=1.5 if filled else 0.9, zorder=2)
    if len(value.by_seed) > 1:
      seeds = scale * np.array(value.by_seed)
      face = color if filled else "white"
      axes.scatter([x + (0.12 if filled else -0.12)] * len(seeds), seeds, s=11, facecolors=face,
                   edgecolors=color, linewidths=0.7, alpha=0.7)  # fmt: skip
