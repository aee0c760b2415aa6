"""The figures of the further studies: seen classes, optimisers, SubTuning of each unit."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from subtune_jax.report import charts, heat_map, marks, style, words
from subtune_jax.studies.holistic_transfer import record as holistic_records

if TYPE_CHECKING:
  from matplotlib.figure import Figure
  from matplotlib.image import AxesImage

Study = holistic_records.Study
Row = holistic_records.Row
_DASHES = {"head": "-", "ncm": style.DASHED}
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
  figure, panels = charts.panels(2, 9.5, 4.4, sharey=True)
  hows = [how for how in _HOWS if any(study.partition(n)["how"] == how for n in networks)]
  titles = {"Y": "among all classes", "own": "among these absent classes"}
  source, color = _source_common(study, networks), style.METHOD_COLORS["pretrained"]
  numbers = sorted({study.partition(n)["num_seen"] for n in networks})
  apart = 0.008 * (numbers[-1] - numbers[0])
  for axes, (space, title) in zip(panels, titles.items(), strict=True):
    for kind, dashes in _DASHES.items():
      for place, how in enumerate(hows):
        own = [n for n in networks if study.partition(n)["how"] == how and kind in n["common"]]
        _draw_sizes(study, axes, own, kind, space, apart * (2 * place - len(hows) + 1))
      axes.axhline(
        100 * source[kind][space], color=color, linestyle=dashes, linewidth=1.3, zorder=1
      )
    label = "accuracy on the shared\nabsent classes, %" if axes is panels[0] else ""
    charts.label(axes, title, x="classes fine-tuned on", y=label)
    axes.set_xticks(numbers)
  panels[0].set_ylim(bottom=0)
  entries = [(marks.key(*_HOWS[how][1:]), f"seen: {_HOWS[how][0]}") for how in hows]
  charts.legend(figure, [
    *entries,
    (marks.key(color, dashes="-"), "source model"),
    (marks.key(style.INK, dashes="-"), "the classifier"),
    (marks.key(style.INK, dashes=style.DASHED), "nearest class means"),
  ])  # fmt: skip
  return figure


def _draw_sizes(
  study: Study, axes, networks: Sequence[Row], kind: str, space: str, shift: float
) -> None:
  """One line over the numbers of seen classes, `shift` aside; dots are seeds."""
  points: dict[float, list[float]] = {}
  for network in networks:
    place = study.partition(network)["num_seen"] + shift
    points.setdefault(place, []).append(100 * network["common"][kind][space])
  if not points:
    return
  _, color, marker = _HOWS[study.partition(networks[0])["how"]]
  xs, filled = sorted(points), kind == "head"
  means = np.array([[np.mean(points[x]) for x in xs]])
  marks.lines(axes, xs, means, color, marker, dashes=_DASHES[kind], filled=filled)
  for x in xs:
    _seeds(axes, x, points[x], color, filled=filled)


def _seeds(axes, x: float, seeds: Sequence[float], color: str, *, filled: bool) -> None:
  look = {"facecolors": color if filled else "white", "edgecolors": color, "alpha": 0.7}
  marks.seed_dots(axes, [x] * len(seeds), seeds, **look)


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
  count, columns = len(optimizers), min(len(optimizers), _PER_ROW)
  figure, panels = charts.panels(
    count, max(columns * (0.62 * len(rates) + 0.5) + 2.2, 6.5), 0.42 * len(decays) + 0.95,
    per_row=columns, around=0.5, sharex=True, sharey=True,
  )  # fmt: skip
  known = [100 * row["epochs"][-1]["ausuc"] for row in rows if row["epochs"]]
  look = heat_map.accuracy_colors(np.array(known or [0.0]))
  for index, (axes, optimizer) in enumerate(zip(panels, optimizers, strict=True)):
    own = {(decays.index(d), rates.index(r)): row for (o, d, r), row in cells.items()
           if o == optimizer}  # fmt: skip
    image = _draw_sweep(axes, own, (len(decays), len(rates)), look)
    axes.set_xticks(range(len(rates)), [words.setting_value(r) for r in rates])
    axes.set_yticks(range(len(decays)), [words.setting_value(d) for d in decays])
    lowest, left = index + columns >= count, index % columns == 0
    charts.label(
      axes, optimizer, x="learning rate" if lowest else "", y="weight decay" if left else "",
      grid="",
    )  # fmt: skip
    if lowest:
      axes.tick_params(labelbottom=True)
  heat_map.color_bar(image, panels, "AUSUC, hundredths")
  charts.legend(figure, [(heat_map.outline_key(), "highest accuracy on validation images")])
  return figure


def _sweep_place(row: Row) -> tuple[str, float, float]:
  """(optimiser, weight decay, learning rate) of a network of the sweep."""
  _, optimizer, decay = row["method"].split(":")
  return optimizer, float(decay), row["learning_rate"]


def _draw_sweep(
  axes, cells: Mapping[tuple[int, int], Row], shape: tuple[int, int], look: tuple
) -> "AxesImage":
  """The heat map of one optimiser, the setting that validation would choose framed."""
  values, judged = np.full(shape, np.nan), {}
  for place, row in cells.items():
    if row["epochs"]:
      values[place] = 100 * row["epochs"][-1]["ausuc"]
      if row["validation_accuracy"] is not None:
        judged[place] = row["validation_accuracy"]
  image = heat_map.draw(axes, values, *look, aspect="auto")
  for place, row in cells.items():
    if row["epochs"]:
      heat_map.write(axes, image, *place, values[place], f"{values[place]:.1f}")
    else:
      axes.text(*place[::-1], "diverged", ha="center", va="center", fontsize=charts.SMALL - 1.5,
                color=style.WARNING)  # fmt: skip
  if judged:
    heat_map.outline(axes, *max(sorted(judged), key=judged.get))
  return image


def block_titles(study: Study) -> dict[str, str]:
  """Title of SubTuning of a unit -> the unit, input to head."""
  return {row["title"]: row["unit"] for row in study.body["blocks"]}


def blocks(study: Study) -> "Figure | None":
  """SubTuning of each unit beside fine-tuning: the gap of the logits, AUSUC, Acc_U/Y."""
  units = block_titles(study)
  if not units:
    return None
  width, room = charts.page_width(len(units), 0.7), charts.label_room(list(units.values()))
  figure, panels = charts.panels(3, width, 7.4 / 3, per_row=1, around=room, sharex=True)
  color, dashes = style.METHOD_COLORS["subtuning"], (style.DASHED, "-")
  reads = (
    ("gap of the logits,\ngamma by ALG", lambda n: n["gamma"], "alg", 1.0),
    ("AUSUC", lambda n: n["ausuc"], "none", 1.0),
    ("Acc U/Y, %", lambda n: n["accuracy"]["micro"]["U/Y"], "none", 100.0),
  )
  for axes, (label, *how) in zip(panels, reads, strict=True):
    _draw_units(axes, study, list(units), *how, color, filled=True)
    for title, dash in zip(study.compared, dashes, strict=True):
      _level(axes, study, title, *how, dash)
    charts.label(axes, y=label)
  read = reads[2][1]
  _draw_units(panels[2], study, list(units), read, "alg", 100.0, color, filled=False)
  _level(panels[2], study, study.compared[1], read, "alg", 100.0, style.DOTTED)
  for axes in panels[1:]:
    axes.set_ylim(bottom=0)
  panels[0].set_ylim(bottom=min(0, panels[0].get_ylim()[0]))
  panels[2].set_ylim(top=1.08 * panels[2].get_ylim()[1])
  charts.unit_ticks(panels[2], list(units.values()), width - 1.2)
  panels[2].set_xlim(-0.5, len(units) - 0.5)
  panels[2].set_xlabel("unit trained, input to head", fontsize=charts.SIZE)
  tuned = study.compared[1]
  lines = [*zip(study.compared, dashes, study.compared, strict=True),
           (tuned, style.DOTTED, f"{tuned} with ALG")]  # fmt: skip
  figure.align_ylabels(panels)
  charts.legend(figure, [
    (marks.key(color, "^"), "SubTuning of the unit"),
    (marks.key(color, "^", filled=False), "the same with ALG"),
    *((marks.key(study.colors[title], dashes=dash), text) for title, dash, text in lines),
  ])  # fmt: skip
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
            linestyle="-" if filled else style.DASHED)  # fmt: skip
  for x, value in enumerate(found):
    marks.point(axes, x, means[x], color, "^", filled=filled)
    place = x if filled else x - 0.05  # beside the interval of the filled point
    ends, line = [scale * end for end in value.interval or ()], 1.5 if filled else 0.9
    marks.interval(axes, place, ends, color, line=line, zorder=2)
    seeds = [scale * seed for seed in value.by_seed]
    _seeds(axes, x + (0.12 if filled else -0.12), seeds, color, filled=filled)
