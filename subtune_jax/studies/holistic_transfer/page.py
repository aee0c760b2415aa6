"""The report of a study of holistic transfer: who forgets what, and what calibration gives back."""

from collections.abc import Iterator, Sequence
import dataclasses
import math
import os
import pathlib

from subtune_jax.report import document as document_lib
from subtune_jax.report import estimate, html, style, words
from subtune_jax.report.document import Cell, Facts, Section, Table, Text
from subtune_jax.studies import sections
from subtune_jax.studies.holistic_transfer import captions, sweep_figures
from subtune_jax.studies.holistic_transfer import headline as headline_lib
from subtune_jax.studies.holistic_transfer import record as record_lib

Study = record_lib.Study
Row = record_lib.Row
PAIRS = ("Y/Y", "S/Y", "U/Y")
_INTERVAL_NOTE = (
  "Small: 95 % intervals by a bootstrap over {}; every gamma is held. Intervals of rows overlap "
  "more than their differences do: those are below."
)
_DIFFERENCE_NOTE = (
  "In points, over images, paired 95 % intervals: both rows are read on the same drawn test "
  "images{}. In bold where the interval excludes 0; with as many rows as here some do so by chance."
)
_ORACLES = {
  "star": "oracle: gamma by test labels",
  "method": "oracle: trained on all classes",
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
    for kind in record_lib.CALIBRATIONS:
      if study.is_oracle(title) and kind != record_lib.NONE:
        continue
      if kind == record_lib.STAR and title != study.title(record_lib.FT):
        continue
      if kind in rows:
        oracle = _ORACLES["method"] if study.is_oracle(title) else _ORACLES.get(kind, "")
        yield rows[kind], oracle


def _percent(number: Row) -> Cell:
  """A mean in per cent, in small its interval, or the range over seeds where it has none."""
  value = record_lib.estimate(number)
  notes = ()
  if ends := _ends(value):
    notes = ("\N{EN DASH}".join(map(words.percent, ends)),)
  return Cell(words.percent(value.mean), notes, plain=words.percent(value.mean))


def _ends(value: record_lib.Estimate) -> tuple[float, float] | None:
  if value.interval:
    return value.interval
  return value.range if len(value.by_seed) > 1 and not math.isnan(value.mean) else None


def _number(number: Row, digits: int = 2) -> Cell:
  """The same of a number that is no fraction."""
  value = record_lib.estimate(number)
  if math.isnan(value.mean):
    return Cell("n/a")
  text, *ends = (
    f"{v:.{digits}f}".replace("-", words.MINUS) for v in (value.mean, *(_ends(value) or ()))
  )
  return Cell(text, (" to ".join(ends),) if ends else (), plain=text)


def _name(study: Study, row: Row, oracle: str) -> Cell:
  kind = row["calibration"]
  text = row["title"]
  if kind != record_lib.NONE:
    text += f" {record_lib.CALIBRATIONS[kind]}"
  return Cell(
    text, (oracle,) if oracle else (), note_tone="edge", color=study.colors.get(row["title"], ""),
    plain=f"{text}{' (oracle)' if oracle else ''}",
  )  # fmt: skip


def _accuracies(study: Study, rows: Sequence[tuple[Row, str]]) -> Table:
  """The paper's table: accuracies over images and over classes, AUSUC, gamma."""
  header = ["Test accuracy, %", *(Cell(f"Acc {p}", ("micro",), plain=p) for p in PAIRS), "AUSUC"]
  header += [Cell(f"Acc {p}", ("by class",), plain=f"{p} *") for p in PAIRS]
  header += [Cell("Acc U/U", ("micro",), plain="U/U"), "gamma"]
  cells = []
  for row, oracle in rows:
    numbers = row["numbers"]
    micro, balanced = (numbers["accuracy"][name] for name in ("micro", "balanced"))
    as_it_is = row["calibration"] == record_lib.NONE
    cells.append([
      _name(study, row, oracle), *(_percent(micro[p]) for p in PAIRS),
      _number(numbers["ausuc"], 3),
      *(_percent(balanced[p]) for p in PAIRS), _percent(micro["U/U"]),
      "0" if as_it_is else _number(numbers["gamma"]),
    ])  # fmt: skip
  return Table(header, cells)


def results(study: Study) -> Section:
  """The paper's table, and what it says in sentences."""
  said = [Text(line) for line in headline_lib.headline(study)]
  star = Text("*: by class.", tone="quiet", terminal_only=True)
  notes = [Text(note, tone="quiet") for note in (_spread_note(study), _TABLE_NOTE)]
  table = _accuracies(study, list(table_rows(study)))
  return Section("Results", [table, *said, star, *notes, Text(_CALIBRATION_NOTE, tone="quiet")])


def _spread_note(study: Study) -> str:
  """What the means are over, and what stands in small."""
  if study.num_seeds == 1:
    text = "One seed: how far another training would be from it is not known."
    return (
      f"{text} {_INTERVAL_NOTE.format('groups of test images')}" if study.has_intervals else text
    )
  text = f"Means over {study.num_seeds} seeds."
  if not study.has_intervals:
    return f"{text} Small: the lowest and highest of them."
  drawn = "groups of test images and seeds, each of which has classes of its own"
  return f"{text} {_INTERVAL_NOTE.format(drawn)} Of gamma: the lowest and highest seed."


def differences(study: Study) -> Section:
  """Every row against the source model and against fine-tuning, with intervals."""
  columns = [(ref, name) for ref in (record_lib.PRETRAINED, record_lib.FT)
             for name in (*PAIRS, "AUSUC")]  # fmt: skip
  rows = []
  for row, oracle in table_rows(study):
    found = [study.against(row, reference, name) for reference, name in columns]
    if any(found):
      rows.append([_name(study, row, oracle), *map(_difference, found)])
  header = [
    Cell(
      "AUSUC, hundredths" if name == "AUSUC" else f"Acc {name}",
      (f"against {study.title(reference).lower()}",),
      page_only=name not in ("U/Y", "Y/Y"),
    )
    for reference, name in columns
  ]
  note = Text(_DIFFERENCE_NOTE.format(" and seeds" if study.num_seeds > 1 else ""), tone="quiet")
  parts = [Table(["Difference, points", *header], rows), note] if rows else []
  return Section("Differences", parts)


def _difference(value: estimate.Estimate | None) -> Cell:
  if value is None:
    return Cell("")
  if value.low == value.mean == value.high == 0:
    return Cell("0")  # calibration leaves AUSUC as it is
  low, high = words.signed(100 * value.low), words.signed(100 * value.high)
  tone = "undecided" if value.verdict == estimate.UNDECIDED else "best"
  return Cell(
    words.signed(100 * value.mean), (f"{low} to {high}",), tone=tone, plain=words.difference(value)
  )


def directions(study: Study) -> list[document_lib.Part]:
  """Mean cosines of the classifier's updates, and the lengths of its rows, per method."""
  found: dict[str, list[Row]] = {}
  for network in study.networks():
    if network["use"] in ("main", "wise") and network.get("directions"):
      found.setdefault(network["title"], []).append(network["directions"])
  rows = []
  for title, entries in found.items():
    if not any(entry["update_length"][group] for entry in entries for group in ("seen", "absent")):
      continue  # a frozen classifier
    cells = [Cell(title, color=study.colors[title])]
    for group in ("seen", "absent", "between"):
      cells.append(_mean_text([entry["similarity"][group] for entry in entries]))
    for group in ("seen", "absent"):
      cells.append(_mean_text([entry["update_length"][group] for entry in entries]))
    for group in ("seen", "absent"):
      before, after = ([e[name][group] for e in entries] for name in ("norm_before", "norm_after"))
      cells.append(f"{_mean_text(before)} \N{RIGHTWARDS ARROW} {_mean_text(after)}")
    rows.append(cells)
  if not rows:
    return []
  kinds = {"Cosine": ("two seen", "two absent", "seen and absent")}
  kinds |= dict.fromkeys(("Length of update", "Length of weights"), ("seen", "absent"))
  header = [Cell(name, (kind,)) for name, group in kinds.items() for kind in group]
  table = Table(["Last epoch, mean over seeds", *header], rows, page_only=True)
  note = "Methods whose classifier did not move are left out."
  return [table, Text(note, tone="quiet", page_only=True)]


def _mean_text(values: Sequence[float | None]) -> str:
  if any(value is None for value in values):
    return "n/a"
  return f"{sum(values) / len(values):.2f}".replace("-", words.MINUS)


def blocks(study: Study) -> list[document_lib.Part]:
  """SubTuning of each unit in numbers, the source model and fine-tuning beside it."""
  units = sweep_figures.block_titles(study)
  if not units:
    return []
  header = ["Unit trained", Cell("Gap of the logits", ("gamma by ALG",), plain="gap (ALG)")]
  header += [Cell("Seen over absent", ("logits, absent images",), plain="seen over absent")]
  header += [
    "AUSUC", "Acc S/Y, %", "Acc U/Y, %", "Acc U/Y + ALG, %", "Acc Y/Y + ALG, %",
    Cell("P(U|x)", ("absent images, %",), plain="P(U|x), absent"),
    Cell("Answered absent", ("absent images, %",), plain="answered absent"),
    Cell("NCM U/Y, %", plain="NCM U/Y"),
  ]  # fmt: skip
  rows = [_block_row(study, title, units) for title in [*study.compared, *units]]
  own = [(row, "") for row in study.body["blocks"]]
  every = Section("Every unit as in Results", [_accuracies(study, own)], level=3, folded=True)
  return [Table(header, rows), every]


def _block_row(study: Study, title: str, units: dict[str, str]) -> list[Cell]:
  numbers, calibrated = study.numbers(title), study.numbers(title, record_lib.ALG)
  micro, absent = numbers["accuracy"]["micro"], numbers["probabilities"]["absent"]
  shown, missing = calibrated and calibrated["accuracy"]["micro"], Cell("n/a")
  color = study.colors.get(title, style.METHOD_COLORS["subtuning"])
  return [
    Cell(units.get(title, title), color=color),
    _number(calibrated["gamma"]) if calibrated else missing,
    _number(numbers["margins"]["seen_over_absent"]),
    _number(numbers["ausuc"], 3),
    _percent(micro["S/Y"]),
    _percent(micro["U/Y"]),
    *(_percent(shown[pair]) if shown else missing for pair in ("U/Y", "Y/Y")),
    _percent(absent["p_absent"]),
    _percent(absent["answered_absent"]),
    _percent(numbers["ncm"]["cosine"]["micro"]["U/Y"]) if "ncm" in numbers else missing,
  ]


def sizes(study: Study) -> list[document_lib.Part]:
  """Fine-tuning on each number of seen classes in numbers."""
  groups: dict[tuple[str, int], list[Row]] = {}
  for network in sweep_figures.size_networks(study):
    place = study.partition(network)
    groups.setdefault((place["how"], place["num_seen"]), []).append(network["epochs"][-1])
  rows = []
  hows = list(dict.fromkeys(how for how, _ in groups))
  for how, number in sorted(groups, key=lambda group: (hows.index(group[0]), group[1])):
    epochs = groups[how, number]
    cells = [f"{number} classes, {how}"]
    for kind, pair in (("none", "S/Y"), ("none", "U/Y"), ("alg", "U/Y"), ("alg", "Y/Y")):
      cells.append(_percent(_over([e["accuracy"][kind]["micro"][pair] for e in epochs])))
    cells.append(_number(_over([epoch["ausuc"] for epoch in epochs]), 3))
    rows.append(cells)
  if not rows:
    return []
  header = ["Fine-tuned on", "Acc S/Y, %", "Acc U/Y, %", "Acc U/Y + ALG, %", "Acc Y/Y + ALG, %"]
  note = "Each with its own absent classes, so that rows are not of the same images."
  note += " Small: the lowest and highest seed." if study.num_seeds > 1 else ""
  return [Table([*header, "AUSUC"], rows), Text(note, tone="quiet"), every_network(study, "size")]


def _over(values: Sequence[float]) -> Row:
  return {"mean": sum(values) / len(values), "by_seed": list(values)}


def every_network(study: Study, use: str) -> Section:
  """A row per network of one seed, those that diverged included; empty where there is none."""
  rows = []
  for network in (n for n in study.body["networks"] if n["use"] == use):
    place, name, numbers = study.partition(network), network["title"], ["diverged", "", ""]
    if use == "size":
      name = f"{place['num_seen']} classes, {place['how']}, seed {place['seed']}"
    if network["epochs"]:
      last = network["epochs"][-1]
      micro = last["accuracy"][record_lib.NONE]["micro"]
      numbers = [words.percent(v) for v in (micro["U/Y"], micro["U/U"], last["ausuc"])]
    shared = network.get("common", {}).get("ncm")
    shown = words.percent(shared["Y"]) if shared else ""
    rows.append([name, f"{network['learning_rate']:g}", *numbers, shown])
  header = ["Network", "rate", "U/Y", "U/U", "AUSUC", "NCM, shared U"]
  title = "Every network, %, one seed each"
  return Section(title, [Table(header, rows)] if rows else [], level=3, folded=True)


def run_facts(study: Study) -> Section:
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
    *sections.run_rows(record),
    ("Seeds", ", ".join(str(seed) for seed in record["config"].get("seeds", ()))),
    *sections.backbone_rows(record["backbone"]),
    ("Source model", "; ".join(str(fact) for fact in facts if fact)),
    ("Target", f"{data['train']}: {data['num_train']:,} images to train, "
     f"{data['num_validation']:,} for validation, {data['num_test']:,} to test, of all classes"),
    ("Seen classes", counts),
  ]  # fmt: skip
  for entry in study.body["pcv"]:
    text = f"{study.title(entry['method'])}, seed {entry['seed']}: gamma {entry['gamma']:.2f} from "
    rows.append(("PCV", f"{text}{len(entry['splits'])} pseudo splits"))
  chosen = [
    Cell(f"{entry['title']} {words.setting_value(entry['learning_rate'])}",
         ("! edge of grid",) if entry["grid_edge"] else (), note_tone="edge")
    for entry in study.body["methods"]
  ]  # fmt: skip
  note = Cell("", ("by accuracy on validation images of seen classes",))
  rows.append(("Learning rates", [*chosen, note]))
  return Section("The run", [Facts(rows)], page_only=True)


def report(study: Study) -> document_lib.Document:
  """The whole report."""
  record = study.record
  data = record["data"]
  tables = {"directions": directions(study), "blocks": blocks(study), "sizes": sizes(study)}
  figures: list[document_lib.Part] = []
  for figure in captions.drawn(study):
    under = tables.pop(figure.name, [])
    if figure.name == "sweep":
      under = [every_network(study, "sweep")]
    figures.append(dataclasses.replace(figure, parts=under))
  seen = study.body["partitions"][0]["num_seen"]
  source = f"From {data['source']} to {data['train']}" if data.get("source") else data["train"]
  subtitle = (
    f"{record['name']}, {record['created']}. {source}; fine-tuned on {seen} of "
    f"{len(data['class_names'])} classes, tested on {data['num_test']:,} images of all; "
    f"{words.count(study.num_seeds, 'seed')}."
  )
  parts = [
    Text(subtitle, terminal_only=True),
    results(study),
    differences(study),
    *figures,
    *(Section(captions.TABLES[name], parts) for name, parts in tables.items()),
    run_facts(study),
    sections.settings(record["config"]),
    sections.attribution(data.get("attribution")),
  ]
  return document_lib.Document(record["title"], subtitle, parts)


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
  """Reads WORKDIR/results.json and writes the page again; returns its path.

  Raises:
    FileNotFoundError: a file that the record names is missing.
    ValueError: not the record of such a study, or a damaged file.
  """
  return html.write(workdir, report(record_lib.load(workdir)))
