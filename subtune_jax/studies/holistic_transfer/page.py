"""The page of a study of holistic transfer: who forgets what, and what calibration gives back.

holistic_page.write_page(record, workdir)
"""

from collections.abc import Iterator, Sequence
import math
import os
import pathlib

from subtune_jax import files
from subtune_jax.report import document, estimate, html, style, words
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.holistic_transfer import curve_figures as holistic_curves
from subtune_jax.studies.holistic_transfer import figures as holistic_plots
from subtune_jax.studies.holistic_transfer import record as holistic_records
from subtune_jax.studies.holistic_transfer import sweep_figures as holistic_studies

Study = holistic_records.Study
Row = holistic_records.Row
PAIRS = ("Y/Y", "S/Y", "U/Y")
_JOINED = "\N{NO-BREAK SPACE}%"
_MINUS = "\N{MINUS SIGN}"
_INTERVAL_NOTE = (
  "Small: 95 % intervals by a bootstrap over {}; every gamma is held. Intervals of rows overlap "
  "more than their differences do: those are below."
)
_DIFFERENCE_NOTE = (
  "In points, over images, 95 % intervals, paired: both rows are read on the same drawn test "
  "images{}. In bold where the interval excludes 0; with as many rows as here some do so by chance."
)
_ORACLES = {
  "star": "oracle: gamma by test labels",
  "method": "oracle: trained on all classes",
}
_TABLES = {
  "sizes": "Number and structure of the seen classes",
  "directions": "Directions of the classifier's updates",
  "blocks": "SubTuning of each unit",
}
_TABLE_NOTE = (
  "Acc A/B: accuracy in per cent on test images of the classes A when every class of B may be "
  "answered; Y: all classes, S: seen in fine-tuning, U: absent from it. Micro: every image counts "
  "the same. By class: every class does. AUSUC: area under the curve of Acc S/Y and Acc U/Y over "
  "all gammas, micro; calibration moves along the curve and leaves it as it is."
)
_CALIBRATION_NOTE = (
  "Calibration adds gamma to the logits of the absent classes. ALG (average logit gap) reads "
  "training images of seen classes, PCV (pseudo cross-validation) leaves out some of the seen "
  "classes in trainings of its own. Rows marked as oracle are no results that a user could get: "
  "gamma* is the best gamma on the test labels, and the oracle method had images of all classes."
)


def table_rows(study: Study) -> Iterator[tuple[Row, str]]:
  """(row of the record's table, what makes it an oracle or ""), in the order of the page.

  The source model, fine-tuning with every calibration, then each other method with all but gamma*;
  methods that saw all classes come last, as they are.
  """
  order = [*study.compared, *(t for t in study.names if t not in study.compared)]
  order.sort(key=study.is_oracle)
  for title in order:
    rows = {row["calibration"]: row for row in study.body["table"] if row["title"] == title}
    for kind in holistic_records.CALIBRATIONS:
      if study.is_oracle(title) and kind != holistic_records.NONE:
        continue
      if kind == holistic_records.STAR and title != study.title(holistic_records.FT):
        continue
      if kind in rows:
        oracle = _ORACLES["method"] if study.is_oracle(title) else _ORACLES.get(kind, "")
        yield rows[kind], oracle


def _percent_cell(number: Row) -> str:
  """A mean in per cent, in small its interval, or the range over seeds where it has none."""
  value = holistic_records.estimate(number)
  text = words.percent(value.mean)
  ends = _ends(value)
  if ends:
    low, high = map(words.percent, ends)
    text += f"<small>{low}\N{EN DASH}{high}</small>"
  return text


def _ends(value: holistic_records.Estimate) -> tuple[float, float] | None:
  if value.interval:
    return value.interval
  return value.range if len(value.by_seed) > 1 and not math.isnan(value.mean) else None


def _number_cell(number: Row, digits: int = 2) -> str:
  """The same of a number that is no fraction."""
  value = holistic_records.estimate(number)
  if math.isnan(value.mean):
    return "n/a"
  text = f"{value.mean:.{digits}f}"
  ends = _ends(value)
  if ends:
    low, high = ends
    text += f"<small>{low:.{digits}f} to {high:.{digits}f}</small>"
  return text.replace("-", _MINUS)


def _name_cell(study: Study, row: Row, oracle: str) -> str:
  color, kind = study.colors[row["title"]], row["calibration"]
  text = html.escape(row["title"])
  if kind != holistic_records.NONE:
    text += f" {html.escape(holistic_records.CALIBRATIONS[kind])}"
  edge = f'<small class="edge">{html.escape(oracle)}</small>' if oracle else ""
  return html.swatch(color) + text + edge


def results_section(study: Study) -> str:
  """The paper's table, and what it says in sentences."""
  header = ["Test accuracy, %", *(f"Acc {pair}<small>micro</small>" for pair in PAIRS)]
  header += ["AUSUC", *(f"Acc {pair}<small>by class</small>" for pair in PAIRS), "gamma"]
  rows = []
  for row, oracle in table_rows(study):
    numbers = row["numbers"]
    micro, balanced = (numbers["accuracy"][name] for name in ("micro", "balanced"))
    rows.append([
      _name_cell(study, row, oracle), *(_percent_cell(micro[p]) for p in PAIRS),
      _number_cell(numbers["ausuc"], 3), *(_percent_cell(balanced[p]) for p in PAIRS),
      "0" if row["calibration"] == "none" else _number_cell(numbers["gamma"]),
    ])  # fmt: skip
  notes = [_spread_note(study), _TABLE_NOTE, _CALIBRATION_NOTE]
  said = "".join(f"<p>{html.escape(line)}</p>" for line in headline(study))
  quiet = "".join(f'<p class="quiet">{html.escape(line)}</p>' for line in notes)
  return f"<h2>Results</h2>{html.grid(header, rows, 'results')}{said}{quiet}"


def _spread_note(study: Study) -> str:
  """What the means are over, and what stands in small."""
  if study.num_seeds == 1:
    text = "One seed: how far another training would be from it is not known."
    return f"{text} {_INTERVAL_NOTE.format('test concepts')}" if study.has_intervals else text
  text = f"Means over {study.num_seeds} seeds."
  if not study.has_intervals:
    return f"{text} Small: the lowest and highest of them."
  drawn = "test concepts and seeds, each of which has classes of its own"
  return f"{text} {_INTERVAL_NOTE.format(drawn)} Of gamma: the lowest and highest seed."


def differences_section(study: Study) -> str:
  """Every row against the source model and against fine-tuning, with intervals."""
  columns = [(ref, name) for ref in (holistic_records.PRETRAINED, holistic_records.FT)
             for name in (*PAIRS, "AUSUC")]  # fmt: skip
  rows = []
  for row, oracle in table_rows(study):
    found = [study.against(row, reference, name) for reference, name in columns]
    if any(found):
      rows.append([_name_cell(study, row, oracle), *map(_difference_cell, found)])
  if not rows:
    return ""
  header = [
    f"{'AUSUC, hundredths' if name == 'AUSUC' else f'Acc {name}'}"
    f"<small>against {html.escape(study.title(reference).lower())}</small>"
    for reference, name in columns
  ]
  note = _DIFFERENCE_NOTE.format(" and seeds" if study.num_seeds > 1 else "")
  grid = html.grid(["Difference", *header], rows, "results")
  return f'<h2>Differences</h2>{grid}<p class="quiet">{html.escape(note)}</p>'


def _difference_cell(value: estimate.Estimate | None) -> str:
  if value is None:
    return ""
  if value.low == value.mean == value.high == 0:
    return "0"  # calibration leaves AUSUC as it is
  low, high = _signed(100 * value.low), _signed(100 * value.high)
  css = "undecided" if value.verdict == estimate.UNDECIDED else "best"
  return f'<span class="{css}">{_signed(100 * value.mean)}</span><small>{low} to {high}</small>'


def _mean(study: Study, title: str, kind: str, pair: str) -> float | None:
  """Micro accuracy in per cent of a row of the table."""
  numbers = study.numbers(title, kind)
  value = None if numbers is None else numbers["accuracy"]["micro"][pair]["mean"]
  return None if value is None else 100 * value


def headline(study: Study) -> list[str]:
  """What fine-tuning did to absent classes, what calibration gives back, what the features say."""
  source, ft = study.compared
  before, after = (_mean(study, t, "none", "U/Y") for t in (source, ft))
  did = "lost" if after < before else "gained"
  lines = [
    f"Accuracy on absent classes (Acc U/Y): {before:.1f} % of the source model, {after:.1f} % "
    f"after fine-tuning, which {did} {abs(after - before):.1f} points"
    f"{_interval(study, ft, 'none', 'U/Y', after < before)}; on seen classes (Acc S/Y) "
    f"{_mean(study, source, 'none', 'S/Y'):.1f} % and {_mean(study, ft, 'none', 'S/Y'):.1f} %."
  ]
  lines += [_given_back(study, kind, before) for kind in ("alg", "pcv") if study.numbers(ft, kind)]
  best = _mean(study, ft, "star", "Y/Y")
  if best is not None:
    lines[-1] += f" The best gamma on the test labels (an oracle) would reach {best:.1f} % there."
  return [line.replace(" %", _JOINED) for line in (*lines, *_features_said(study))]


def _interval(study: Study, title: str, kind: str, pair: str, lost: bool = False) -> str:
  """ " (95 % interval 1.2 to 3.4)" of the difference from the source model; "" without one."""
  value = study.against(study.row(title, kind), holistic_records.PRETRAINED, pair)
  if value is None:
    return ""
  ends = (-value.high, -value.low) if lost else (value.low, value.high)
  low, high = (f"{100 * end:.1f}".replace("-", _MINUS) for end in ends)
  return f" (95 % interval {low} to {high})"


def _given_back(study: Study, kind: str, before: float) -> str:
  """What a calibration of fine-tuning changes, in a sentence."""
  ft = study.title(holistic_records.FT)
  absent, seen, every = (
    tuple(_mean(study, ft, k, pair) for k in ("none", kind)) for pair in ("U/Y", "S/Y", "Y/Y")
  )
  back = absent[1] - absent[0]
  text = f"{kind.upper()} gives back {back:.1f} points of Acc U/Y, to {absent[1]:.1f} %"
  if back <= 0:
    text = f"{kind.upper()} gives nothing back: Acc U/Y goes to {absent[1]:.1f} %"
  where = "above" if absent[1] > before else "below"
  text += f" ({abs(absent[1] - before):.1f} points {where} the source model)"
  moved = seen[1] - seen[0]
  change = f"changes Acc S/Y by {_signed(moved)} points to" if abs(moved) >= 0.05 else ""
  text += f", and {change or 'leaves Acc S/Y at'} {seen[1]:.1f} %"
  text += f"; over all classes (Acc Y/Y) {every[0]:.1f} % becomes {every[1]:.1f} %"
  against = study.against(study.row(ft, kind), holistic_records.FT, "Y/Y")
  if against is not None:
    low, high = _signed(100 * against.low), _signed(100 * against.high)
    text += f", a difference of {low} to {high} points (95 % interval)"
  return f"{text}."


def _signed(value: float) -> str:
  return f"{value:+.1f}".replace("-", _MINUS)


def _features_said(study: Study) -> list[str]:
  """Whether the features of absent classes became better or worse, in a sentence."""
  found = [study.numbers(title) for title in study.compared]
  if any("ncm" not in numbers for numbers in found):
    return []
  ncm = [100 * numbers["ncm"]["cosine"]["micro"]["U/Y"]["mean"] for numbers in found]
  own = [100 * numbers["accuracy"]["micro"]["U/U"]["mean"] for numbers in found]
  way = "better" if ncm[1] > ncm[0] else "no better"
  return [
    f"The features tell absent classes apart {way} than before: by nearest class means, Acc U/Y is "
    f"{ncm[0]:.1f} % of the source model and {ncm[1]:.1f} % after fine-tuning. Among absent "
    f"classes alone (Acc U/U) the classifier has {own[0]:.1f} % and {own[1]:.1f} %."
  ]


def directions_section(study: Study) -> str:
  """Mean cosines of the classifier's updates, and the lengths of its rows, per method."""
  found: dict[str, list[Row]] = {}
  for network in study.networks():
    if network["use"] in ("main", "wise") and network.get("directions"):
      found.setdefault(network["title"], []).append(network["directions"])
  rows = []
  for title, entries in found.items():
    if not any(entry["update_length"][group] for entry in entries for group in ("seen", "absent")):
      continue  # a frozen classifier
    cells = [html.swatch(study.colors[title]) + html.escape(title)]
    for group in ("seen", "absent", "between"):
      cells.append(_mean_text([entry["similarity"][group] for entry in entries]))
    for group in ("seen", "absent"):
      cells.append(_mean_text([entry["update_length"][group] for entry in entries]))
    for group in ("seen", "absent"):
      before, after = ([e[name][group] for e in entries] for name in ("norm_before", "norm_after"))
      cells.append(f"{_mean_text(before)} \N{RIGHTWARDS ARROW} {_mean_text(after)}")
    rows.append(cells)
  if not rows:
    return ""
  header = ["Last epoch, mean over seeds", *(f"Cosine<small>{kind}</small>" for kind in
            ("two seen", "two absent", "seen and absent"))]  # fmt: skip
  header += [f"Length of update<small>{kind}</small>" for kind in ("seen", "absent")]
  header += [f"Length of weights<small>{kind}</small>" for kind in ("seen", "absent")]
  note = "Methods whose classifier did not move are left out."
  return html.grid(header, rows, "results") + f'<p class="quiet">{note}</p>'


def _mean_text(values: Sequence[float | None]) -> str:
  if any(value is None for value in values):
    return "n/a"
  return f"{sum(values) / len(values):.2f}".replace("-", _MINUS)


def blocks_section(study: Study) -> str:
  """SubTuning of each unit in numbers, the source model and fine-tuning beside it."""
  units = holistic_studies.block_titles(study)
  if not units:
    return ""
  rows = []
  for title in [*study.compared, *units]:
    numbers, calibrated = study.numbers(title), study.numbers(title, "alg")
    color = study.colors.get(title, style.METHOD_COLORS["subtuning"])
    micro = numbers["accuracy"]["micro"]
    shown = calibrated["accuracy"]["micro"] if calibrated else None
    rows.append([
      html.swatch(color) + html.escape(units.get(title, title)),
      _number_cell(calibrated["gamma"]) if calibrated else "n/a",
      _number_cell(numbers["margins"]["seen_over_absent"]), _number_cell(numbers["ausuc"], 3),
      _percent_cell(micro["S/Y"]), _percent_cell(micro["U/Y"]),
      _percent_cell(shown["U/Y"]) if shown else "n/a",
      _percent_cell(shown["Y/Y"]) if shown else "n/a",
    ])  # fmt: skip
  header = ["Unit trained", "Gap of the logits<small>gamma by ALG</small>"]
  header += ["Seen over absent<small>logits, absent images</small>", "AUSUC"]
  header += ["Acc S/Y, %", "Acc U/Y, %", "Acc U/Y + ALG, %", "Acc Y/Y + ALG, %"]
  return html.grid(header, rows, "results")


def figures(study: Study) -> list[document.Figure]:
  """The figures of the study, rendered; those that its record has nothing for are left out."""
  seeds = " Thin: single seeds." if study.num_seeds > 1 else ""
  dots = " Dots: single seeds." if study.num_seeds > 1 else ""
  lines = " Lines: 95 % intervals of the mean." if study.has_intervals else ""
  drawn = [*_paper_figures(study, seeds, dots, lines), *_further_figures(study, seeds, dots, lines)]
  return document.rendered(drawn)


def _paper_figures(study: Study, seeds: str, dots: str, lines: str) -> list[tuple]:
  """(name, title, figure or None, alt text, caption) of the paper's figures 2 to 7."""
  along = " and ".join(study.title(method).lower() for method in study.along())
  means = ""
  if study.num_seeds > 1:
    means = (
      " Thick: mean over seeds at the same gamma; thin: single seeds. Points: means over seeds, "
      "each with its own gamma, which may lie a little off it."
    )
  return [
    (
      "plane", "Seen against absent classes", holistic_plots.plane(study),
      "Curves of accuracy on absent classes against accuracy on seen classes over all gammas.",
      "Each curve is all that one model can reach by adding a gamma to the logits of absent "
      f"classes, exact, from the test logits.{means}",
    ),
    (
      "plane_methods", "Every method, as it is and with ALG", holistic_plots.plane_methods(study),
      "Scatter of every method in the plane of both accuracies, linked to itself with ALG.",
      "Mean over seeds. Up and to the right is better. The axes need not start at 0.",
    ),
    (
      "nearest_means", "The classifier against its features", holistic_plots.nearest_means(study),
      "Bars of accuracy of the head and of nearest class means, before and after fine-tuning.",
      "Nearest class means (cosine) take the means of training images of all classes in the "
      f"target: what the features know, not a method for absent classes.{dots}",
    ),
    (
      "absent_accuracy", "Absent classes along training",
      holistic_curves.absent_accuracy(study),
      "Lines of accuracy on absent classes by epoch, by the head and by nearest class means.",
      f"Training: {along}.{seeds}",
    ),
    (
      "absent_probability", "Probability of the absent classes",
      holistic_curves.absent_probability(study),
      "Lines of the probability of absent classes, and of the share answered so, by epoch.",
      "P(c|x) = P(U|x) P(c|x, U) for an absent class c: the first factor is what falls if the "
      f"logits are biased to the seen classes. Training: {along}.{seeds}",
    ),
    (
      "ausuc", "AUSUC of every method", holistic_plots.ausuc_bars(study),
      "Bars of the area under the seen-unseen curve of every method.",
      "The same with every gamma: how good a model is once calibrated in whatever way. Diamond: "
      f"the same features answered by nearest class means.{dots}{lines}",
    ),
  ]  # fmt: skip


def _further_figures(study: Study, seeds: str, dots: str, lines: str) -> list[tuple]:
  """Likewise of the paper's figures 8 to 11, and of the study per block."""
  return [
    (
      "sizes", _TABLES["sizes"], holistic_studies.sizes(study),
      "Lines of accuracy on the shared absent classes against the number of seen classes.",
      "On test images of those classes alone that no size of a seed is fine-tuned on, so that all "
      "points of a seed are of the same images. Grey: the source model on them. Whole groups: "
      f"seen classes are drawn by super-class.{dots}",
    ),
    (
      "sweep", "Optimisers", holistic_studies.sweep(study),
      "Heat maps of AUSUC by learning rate and weight decay, one per optimiser.",
      "AUSUC of fine-tuning at its last epoch, one seed. Framed: what validation images of seen "
      "classes would choose.",
    ),
    (
      "directions", _TABLES["directions"], holistic_curves.directions(study),
      "Heat map of the cosine between the updates of every two classes, seen and absent ones.",
      "Weights after fine-tuning minus those of the source model, by class; the first seed. "
      "Classes without images are pushed alike, which keeps their order among themselves.",
    ),
    (
      "margins", "Margins along fine-tuning", holistic_curves.margins(study),
      "Lines of mean logits of absent test images by epoch, and of their differences.",
      "Test images of absent classes. The label's lead over the other absent classes is what Acc "
      f"U/U needs; the seen classes' lead over the absent is what gamma has to exceed.{seeds}",
    ),
    (
      "blocks", _TABLES["blocks"], holistic_studies.blocks(study),
      "Points of the logit gap, of AUSUC and of accuracy on absent classes by unit trained.",
      "One unit trained at a time. The gap is what ALG adds to the logits of absent classes. "
      f"Levels across: fine-tuning and the source model.{dots}{lines}",
    ),
  ]  # fmt: skip


def sizes_section(study: Study) -> str:
  """Fine-tuning on each number of seen classes in numbers."""
  groups: dict[tuple[str, int], list[Row]] = {}
  for network in holistic_studies.size_networks(study):
    place = study.partition(network)
    groups.setdefault((place["how"], place["num_seen"]), []).append(network["epochs"][-1])
  rows = []
  hows = list(dict.fromkeys(how for how, _ in groups))
  for how, number in sorted(groups, key=lambda group: (hows.index(group[0]), group[1])):
    epochs = groups[how, number]
    cells = [html.escape(f"{number} classes, {how}")]
    for kind, pair in (("none", "S/Y"), ("none", "U/Y"), ("alg", "U/Y"), ("alg", "Y/Y")):
      cells.append(_percent_cell(_over([e["accuracy"][kind]["micro"][pair] for e in epochs])))
    cells.append(_number_cell(_over([epoch["ausuc"] for epoch in epochs]), 3))
    rows.append(cells)
  if not rows:
    return ""
  header = ["Fine-tuned on", "Acc S/Y, %", "Acc U/Y, %", "Acc U/Y + ALG, %", "Acc Y/Y + ALG, %"]
  note = "Each with its own absent classes, so that rows are not of the same images."
  note += " Small: the lowest and highest seed." if study.num_seeds > 1 else ""
  return html.grid([*header, "AUSUC"], rows, "results") + f'<p class="quiet">{note}</p>'


def _over(values: Sequence[float]) -> Row:
  return {"mean": sum(values) / len(values), "by_seed": list(values)}


def run_section(study: Study) -> str:
  """How the run was made."""
  record = study.record
  data, source = record["data"], study.body["source"]
  known = source.get("test_accuracy")
  facts = [source.get("data") or "pretrained weights", source.get("method")]
  if known is not None:
    facts.append(f"{words.percent(known)} % on its own test images")
  first = study.body["partitions"][0]
  counts = f"{first['num_seen']} of {len(data['class_names'])}, drawn by: {first['how']}"
  rows = [
    *html.run_rows(record),
    ("Seeds", html.escape(", ".join(str(seed) for seed in record["config"].get("seeds", ())))),
    *html.backbone_rows(record["backbone"]),
    ("Source model", html.escape("; ".join(str(fact) for fact in facts if fact))),
    ("Target", html.escape(
      f"{data['train']}: {data['num_train']:,} images to train, {data['num_validation']:,} for "
      f"validation, {data['num_test']:,} to test, of all classes"
    )),
    ("Seen classes", html.escape(counts)),
  ]  # fmt: skip
  for entry in study.body["pcv"]:
    text = f"{study.title(entry['method'])}, seed {entry['seed']}: gamma {entry['gamma']:.2f} from "
    rows.append(("PCV", html.escape(f"{text}{len(entry['splits'])} pseudo splits")))
  chosen = [
    html.escape(f"{entry['title']} {words.setting_value(entry['learning_rate'])}")
    + (' <span class="edge">! edge of grid</span>' if entry["grid_edge"] else "")
    for entry in study.body["methods"]
  ]
  note = "by accuracy on validation images of seen classes"
  rows.append(("Learning rates", f"{'; '.join(chosen)}<small>{note}</small>"))
  return f"<h2>The run</h2>{html.fact_list(rows)}"


def page(study: Study, drawn: Sequence[document.Figure]) -> str:
  """The whole page as text."""
  record = study.record
  data = record["data"]
  tables = {  # below the figures of these names, or by themselves
    "directions": directions_section(study), "blocks": blocks_section(study),
    "sizes": sizes_section(study),
  }  # fmt: skip
  seen = study.body["partitions"][0]["num_seen"]
  seeds = "1 seed" if study.num_seeds == 1 else f"{study.num_seeds} seeds"
  source = f"From {data['source']} to {data['train']}" if data.get("source") else data["train"]
  body = [
    f"<h1>{html.escape(record['title'])}</h1>",
    f'<p class="quiet">{html.escape(record["name"])}, {html.escape(record["created"])}. '
    f"{html.escape(source)}; fine-tuned on {seen} of {len(data['class_names'])} classes, tested on "
    f"{data['num_test']:,} images of all; {seeds}.</p>",
    results_section(study),
    differences_section(study),
    *(html.figure_section(figure) + tables.pop(figure.name, "") for figure in drawn),
    *(f"<h2>{_TABLES[name]}</h2>{text}" for name, text in tables.items() if text),
    run_section(study),
    html.settings(record["config"]),
    html.attribution(data.get("attribution")),
  ]
  return html.document(record["title"], body)


def write_page(record: Row, workdir: str | os.PathLike) -> pathlib.Path:
  """Writes report.html and figures/*.png into the workdir of a study; returns the page's path.

  Args:
    record: of results.json (`holistic_transfer.run`).
    workdir: of the study, with the files that the record names.

  Raises:
    FileNotFoundError: a file that the record names is missing.
    ValueError: not the record of such a study, or a damaged file.
  """
  study = holistic_records.of(record, workdir)
  drawn = figures(study)
  return html.write(workdir, page(study, drawn), drawn)


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
  """Reads WORKDIR/results.json and writes the page again; see `write_page`."""
  workdir = pathlib.Path(workdir)
  return write_page(files.read_record(workdir / compare_record.RESULTS), workdir)
