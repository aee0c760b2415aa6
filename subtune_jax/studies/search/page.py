"""The report of a search for the units to train."""

from collections.abc import Mapping
import dataclasses
import os
import pathlib

from subtune_jax.report import document as document_lib
from subtune_jax.report import estimate, words
from subtune_jax.report.document import Cell, Facts, Section, Table, Text
from subtune_jax.studies import fields, sections
from subtune_jax.studies.compare import figures as compare_figures
from subtune_jax.studies.compare import page as compare_page
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import summary as summary_lib
from subtune_jax.studies.search import figures as search_figures
from subtune_jax.studies.search import fork_figure, greedy_figure, predicted_page, sentences
from subtune_jax.studies.search import record as search_record

Row = search_record.Row
CHOSEN, HEAD, ALL = "chosen", "head alone", "all units"  # roles of sets
_COLORS = {
  CHOSEN: search_figures.COLOR, HEAD: search_figures.HEAD_COLOR, ALL: search_figures.ALL_COLOR,
}  # fmt: skip
_CERTIFICATE_NOTE = (
  "Expected regret: by how much the best set is above this one, on average over what the data "
  "leave possible. Undecided: the fewest sets that hold the best with a probability of the level. "
  "Assumed: a set's accuracies share the noise of overlapping training sets, 1 / (folds - 1) of a "
  "fold's variance. Where they share less, the probability is too low: the choice is surer than it "
  "says."
)


@dataclasses.dataclass(frozen=True)
class Ranked:
  """A set of the table.

  Attributes:
    name: in words.
    tried: its entry of the record.
    against_chosen: accuracy minus that of the chosen set; None for the chosen set itself, or where
      that was not tried.
    probability: of being the best, None where the certificate does not say.
    role: "chosen", "head alone", "all units" or "".
  """

  name: str
  tried: Row
  against_chosen: estimate.Estimate | None
  probability: float | None
  role: str


def ranking(record: Row, most: int = 15) -> list[Ranked]:
  """The best sets, best first; the chosen one, the head alone and all units are always there.

  Sets that a race dropped have too few folds to be ranked, and are left out.
  """
  sets, names = search_record.by_units(record), search_record.unit_names(record)
  chosen, certificate = sets.get(tuple(record["chosen"])), record["certificate"]
  probabilities = {}
  if certificate:
    probabilities = {tuple(o["units"]): o["probability"] for o in certificate["undecided"]}
    probabilities[tuple(certificate["chosen"])] = certificate["probability_best"]
  whole = sorted((t for t in record["sets"] if t["complete"]), key=lambda t: -t["mean"])
  found = []
  for place, tried in enumerate(whole):
    units = tuple(tried["units"])
    role = {(): HEAD, names: ALL}.get(units, "")
    role = CHOSEN if tried is chosen else role
    if place < most or role:
      against = search_record.difference(tried, chosen) if chosen and tried is not chosen else None
      name = search_record.set_name(units, names)
      found.append(Ranked(name, tried, against, probabilities.get(units), role))
  return found


def _best_sets(record: Row) -> Section:
  total, macs = max(record["backbone"]["num_params"], 1), search_record.total_macs(record)
  rows = []
  for ranked in ranking(record):
    tried, name = ranked.tried, Cell(ranked.name, color=_COLORS.get(ranked.role, ""))
    against = document_lib.difference(ranked.against_chosen)
    if ranked.role == CHOSEN:
      name = dataclasses.replace(name, notes=(CHOSEN,), tone="best", plain=f"> {name.text}")
      against = Cell("", plain=CHOSEN)
    params, fork = words.parameters(tried["trained_params"]), f"{tried['fork_macs'] / 1e6:.1f}"
    share = f"{100 * tried['fork_macs'] / macs:.0f} %" if macs else ""
    rows.append([
      name, document_lib.interval(fields.estimate(tried)), against,
      Cell(params, (f"{100 * tried['trained_params'] / total:.0f} % of all",), plain=params),
      Cell(fork, (f"{share} of the network",) if share else (), plain=f"{fork} {share:>5}"),
      search_record.chance_text(ranked.probability),
      ", ".join(f"{rate:g}" for rate in tried.get("learning_rates", ())),
    ])  # fmt: skip
  header = [
    "Held-out accuracy, %", "Mean", "Against the chosen, points",
    Cell("Parameters trained", plain="trained"),
    Cell("Fork, MMAC", plain="fork MMAC, of network"),
    Cell("Best with probability", plain="best"), Cell("Learning rates chosen", plain="rates"),
  ]  # fmt: skip
  columns = len(header) - (not any(row[-1] for row in rows))
  table = Table(header[:columns], [row[:columns] for row in rows])
  return Section("The best sets", [table, *map(Text, sentences.notes(record))])


def _certificate(record: Row) -> Section:
  """The certificate with all sets that it leaves undecided."""
  found, names = record["certificate"], search_record.unit_names(record)
  parts = []
  if found is not None:
    others = [
      f"{search_record.set_name(other['units'], names)}: "
      f"{search_record.chance_text(other['probability'])}"
      for other in search_record.in_doubt(found)
    ]
    rows = [
      ("Certified", search_record.set_name(found["chosen"], names)),
      ("Best with probability", search_record.chance_text(found["probability_best"])),
      ("Expected regret", f"{100 * found['expected_regret']:.2f} points"),
      ("Level", f"{100 * found['level']:g} %"),
      ("Undecided", others or "none: decided"),
    ]
    parts = [Facts(rows), Text(_CERTIFICATE_NOTE)]
  return Section("Certificate", parts, page_only=True)


def _profile(record: Row) -> Section:
  """The finetuning profile in numbers, which the page draws."""
  sets, rows = search_record.by_units(record), []
  for unit in record["units"]:
    tried = sets.get((unit["name"],))
    if tried is not None:
      mark = "> " if unit["name"] in record["chosen"] else "  "
      diverged = tried.get("diverged", False)
      value = "n/a" if diverged else document_lib.interval(fields.estimate(tried))
      dropped = "" if tried["complete"] else "dropped by the race"
      dropped = "diverged" if diverged else dropped
      rows.append([mark + unit["name"], value, words.parameters(unit["params"]), dropped])
  columns = 4 if any(row[-1] for row in rows) else 3
  header = ["one unit alone, %", "mean", "parameters", ""]
  table = Table(header[:columns], [row[:columns] for row in rows])
  return Section("Finetuning profile", [table] if rows else [], terminal_only=True)


def figures(record: Row) -> dict[str, document_lib.Figure]:
  """The figures of a search by name, rendered; those that its record has nothing for are absent."""
  chosen = search_record.set_name(record["chosen"], search_record.unit_names(record))
  folds = "; dots: single folds" if record["data"]["num_folds"] > 1 else ""
  ranked = search_record.ranked_pairs(record)
  best_pair = search_record.set_name(ranked[0]["units"], ()) if ranked else ""
  drawn = [
    (
      "network", "What is trained", search_figures.network(record),
      f"Blocks of the network from input to head; trained in the chosen set: {chosen}.",
      "The network from input (left) to head (right). Coloured, with a tick"
      f"{' or its rank' if record.get('lora') else ''}: trained. Below, paler: "
      "sets that the certificate does not rule out, with their probability of being the best.",
    ),
    (
      "profile", "Finetuning profile", search_figures.profile(record),
      "Held-out accuracy of each unit trained alone with the head, with intervals.",
      f"One unit and the head trained, all else frozen. Points: means, with 95 % intervals{folds}. "
      "Lines: the head alone and all units, with the bands of their intervals. Green columns: "
      "units of the chosen set. Bars, from zero: parameters of each unit.",
    ),
    (
      "windows", "Units in a row", search_figures.windows(record),
      "Held-out accuracy of units in a row, a series for each number of units.",
      "As above for units that follow each other, each point at the middle of its window. Filled: "
      "the chosen set.",
    ),
    (
      "pairs", "Pairs of units", search_figures.pairs(record),
      f"Heat map of the held-out accuracy of all pairs of units; the best is {best_pair}.",
      "Left: every pair, single units on the diagonal. A dot: the interval of the paired "
      "difference from the best pair includes 0. Each is a comparison by itself, over few folds: "
      "a pair may carry the dot and a better one not. Right: the best pairs with their intervals, "
      "grey where told apart from the first.",
    ),
    (
      "greedy", "Greedy search", greedy_figure.greedy(record),
      "Held-out accuracy and trained parameters at each step of the greedy searches.",
      "Each step takes the best of its candidates (dashes: the others; in a race, means of fewer "
      "folds). Hollow: the step that was not taken, with the reason above. Ringed: the set that "
      "the search returns. Bars, from zero: trained parameters with the head.",
    ),
    (
      "fork", "Accuracy against the cost of one more task", fork_figure.draw(record),
      "Held-out accuracy of the sets against what each adds to inference.",
      fork_figure.caption(record),
    ),
    (
      "cost", "Cost of the search", search_figures.cost(record),
      "Trainings, seconds and operations of the search beside those of a plain one.",
      " ".join(sentences.cost(record)),
    ),
  ]  # fmt: skip
  return {figure.name: figure for figure in document_lib.rendered(drawn)}


def _final(record: Row, workdir: pathlib.Path) -> list[document_lib.Part]:
  """The final comparison: the whole training set, and a test split that is read once.

  A terminal has shown its tables already, when it was run.
  """
  if record["final"] is None:
    return []
  folder = record["final"]["folder"]
  run = compare_record.load(workdir / folder)
  summary = summary_lib.summarize(run)
  results = compare_page.results(summary, "Final comparison on the test split")
  more = [Text("Trained on all training images; the test split was read once, after the search.")]
  link = sections.report_link("The whole report of this comparison", workdir, folder)
  if link.link:
    more.append(Facts([("In full", link)]))
  shown = [
    dataclasses.replace(results, parts=[*results.parts, *more]),
    *compare_page.differences(summary),
    sections.what_intervals_mean(summary_lib.interval_text(summary)),
  ]
  figure = (
    "final_accuracy", "Test accuracy", compare_figures.accuracy_bars(run, summary),
    f"Bar chart of the test accuracy of {', '.join(run.titles.values())}.",
    "Bars: mean over seeds. Lines: 95 % intervals. Dots: single seeds.",
  )  # fmt: skip
  page_only = [dataclasses.replace(section, page_only=True) for section in shown]
  return [*page_only, *document_lib.rendered([figure])]


def folds_text(data: Mapping) -> str:
  """How sets were scored: the folds and their sizes."""
  if data["num_folds"] == 1:
    return "one held-out split"
  sizes = data.get("fold_sizes") or []
  held = f" of {min(sizes):,} to {max(sizes):,} images" if sizes else ""
  return f"{data['num_folds']} folds{held}"


def data_rows(data: Mapping) -> list[sections.FactRow]:
  """The images of a search."""
  split = f" ({data['split']})" if data.get("split") else ""
  images = f"{data['num_examples']:,} of {data['train']}{split}, {len(data['class_names'])} classes"
  rows = [("Images", images), ("Scored by", folds_text(data))]
  for key, title in (("fold_seed", "Seed of the folds"), ("seeds", "Seeds")):
    if data.get(key) is not None:
      value = data[key] if isinstance(data[key], list) else [data[key]]
      rows.append((title, ", ".join(map(str, value))))
  return rows


def _run_facts(record: Row) -> Section:
  spent = record["cost"]
  kept = f"{words.num_bytes(spent['prefix_peak_bytes'])} at most, "
  kept += f"of {words.num_bytes(spent['prefix_budget_bytes'])} allowed"
  rows = [
    *sections.run_rows(record),
    *sections.backbone_rows(record["backbone"]),
    *data_rows(record["data"]),
    (
      "Units at ranks" if record.get("lora") else "Units",
      f"{len(record['units'])}: {', '.join(search_record.unit_names(record))}",
    ),
    ("Sets tried", f"{len(record['sets']):,}"),
    *fork_figure.facts(record),
    ("Outputs of frozen blocks kept", kept),
  ]
  return Section("The run", [Facts(rows)], page_only=True)


def _searched(record: Row) -> Section:
  rows = []
  for search in record["searches"]:
    if search["kind"] == search_record.GREEDY:
      rows.append(("Greedy", sentences.path(record, search)))
    elif search["kind"] == search_record.WINDOWS:
      rows.append(("Windows", f"every {search['width']} units in a row"))
    elif search["kind"] == search_record.PREDICTED:
      names = search_record.unit_names(record)
      sets = "; ".join(search_record.set_name(units, names) for units in search["proposed"])
      text = f"proposed and trained: {sets}" if sets else "predicted, nothing was trained"
      rows.append(("Predicted", text))
    else:
      text = {
        "profile": "every unit alone", "pairs": "every two units",
        "uniform": "one rank for all units",
      }[search["kind"]]  # fmt: skip
      rows.append((search["kind"].capitalize(), text))
  parts = [Facts(rows, page_only=False)] if rows else []
  return Section("What was searched", parts, level=3)


def _ranks(record: Row) -> list[document_lib.Part]:
  """The chosen ranks as fields of the method that takes them; nothing of a search for units."""
  own = record.get("lora")
  if not own or not own["where"]:
    return []
  fields = [("lora.where", " ".join(own["where"])), ("lora.rank_pattern", own["rank_pattern"])]
  return [Section("The chosen ranks", [Facts(fields, page_only=False)], level=3)]


def _predicted(record: Row) -> list[document_lib.Part]:
  """What was predicted without training; first of all where nothing else is there."""
  if not record.get("predicted"):
    return []
  found = predicted_page.section(record, predicted_page.figures(record))
  if not record["sets"]:
    return [found, _certificate(predicted_page.view(record))]
  lines = map(Text, predicted_page.headline(record))
  return [dataclasses.replace(found, parts=[*lines, *found.parts])]


def report(record: Row, workdir: str | os.PathLike) -> document_lib.Document:
  """The whole report.

  Args:
    record: of a finished search.
    workdir: of its final comparison.

  Raises:
    FileNotFoundError, ValueError: the final comparison that the record names cannot be read.
  """
  data, trained = record["data"], bool(record["sets"])
  drawn = figures(record) if trained else {}
  first, *others = sentences.headline(record) if trained else predicted_page.headline(record)
  network = [drawn.pop("network")] if "network" in drawn else []
  cost = [Text(line) for line in sentences.cost(record)]
  searched = [
    _best_sets(record), _certificate(record), *_ranks(record), _profile(record), *drawn.values(),
  ]  # fmt: skip
  parts = [
    Text(first, tone="best"),
    *map(Text, others),
    *network,
    *_final(record, pathlib.Path(workdir)),
    *(searched if trained else []),
    *_predicted(record),
    Section("Cost of the search", cost if trained else [], terminal_only=True),
    _run_facts(record),
    _searched(record),
    sections.settings(record["config"]),
    sections.attribution(data.get("attribution")),
  ]
  subtitle = (
    f"{record['name']}, {record['created']}. {data['num_examples']:,} images, {folds_text(data)}."
  )
  title = record["title"] + (": ranks of LoRA" if record.get("lora") else "")
  return document_lib.Document(title, subtitle, parts)


def document(workdir: str | os.PathLike) -> document_lib.Document:
  """The report of a finished run, from what it left in `workdir`; see `record.load`."""
  return report(search_record.load(workdir), workdir)
