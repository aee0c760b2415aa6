"""The report of a search for the units to train: a page, and a table for the terminal.

record = search_records.load(workdir, "search")
search_page.write_page(record, workdir)
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import os
import pathlib
import textwrap

from subtune_jax.report import charts, document, estimate, html, terminal, words
from subtune_jax.studies.compare import figures as compare_figures
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import summary as summary_lib
from subtune_jax.studies.search import figures as search_plots
from subtune_jax.studies.search import record as search_lib

Row = search_lib.Row
_JOINED = "\N{NO-BREAK SPACE}"
_INTERVALS = (
  "All sets were scored on the same held-out images, so two sets differ more surely than their "
  "intervals, which overlap easily, suggest."
)
_DIFFERENCES = (
  "The interval of a difference is Student's, over the folds, with the variance of Nadeau and "
  "Bengio (2003) for folds that share training images; it is that of one comparison by itself."
)
_ONE_SPLIT = "With one held-out split, differences have no interval here."
_OPTIMISM = (
  "The chosen set was picked by these held-out images, among {count}, so its accuracy on them is "
  "too high by what luck added."
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
  sets, names = search_lib.by_units(record), search_lib.unit_names(record)
  chosen, certificate = sets.get(tuple(record["chosen"])), record["certificate"]
  probabilities = {}
  if certificate:
    probabilities = {tuple(o["units"]): o["probability"] for o in certificate["undecided"]}
    probabilities[tuple(certificate["chosen"])] = certificate["probability_best"]
  whole = sorted((t for t in record["sets"] if t["complete"]), key=lambda t: -t["mean"])
  found = []
  for place, tried in enumerate(whole):
    units = tuple(tried["units"])
    role = {(): "head alone", names: "all units"}.get(units, "")
    role = "chosen" if tried is chosen else role
    if place < most or role:
      against = search_lib.difference(tried, chosen) if chosen and tried is not chosen else None
      name = search_lib.set_name(units, names)
      found.append(Ranked(name, tried, against, probabilities.get(units), role))
  return found


def headline(record: Row) -> list[str]:
  """What was chosen, how good it is, and what is left in doubt, a sentence or two each."""
  sets, names = search_lib.by_units(record), search_lib.unit_names(record)
  name = search_lib.set_name(record["chosen"], names)
  lines = [f"Chosen: {name}{'' if not record['chosen'] else ', with the head'}"]
  lines[0] += f" ({record['chosen_by']})."
  chosen = sets.get(tuple(record["chosen"]))
  if chosen is not None:
    lines.append(_accuracy_sentence(record, chosen))
  if record["certificate"] is None:
    return [*lines, "No certificate: whether another set is better was not asked."]
  return [*lines, *certificate_lines(record["certificate"], names, record["chosen"])]


def _accuracy_sentence(record: Row, chosen: Row) -> str:
  sets, names = search_lib.by_units(record), search_lib.unit_names(record)
  text = f"{accuracy_text(search_lib.estimate(chosen))} on held-out images"
  against = []
  for units, title in (((), "the head alone"), (names, "all units (full fine-tuning)")):
    if units in sets and sets[units] is not chosen:
      difference = search_lib.difference(chosen, sets[units])
      against.append(f"{points_text(difference)} points against {title}")
  if against:
    text += f": {' and '.join(against)}"
  total = record["backbone"]["num_params"]
  params = chosen["trained_params"]
  return f"{text}. {words.parameters(params)} of {words.parameters(total)} parameters are trained."


def accuracy_text(value: estimate.Estimate) -> str:
  """ "52.2 % (95 % interval 48.3 to 56.0)"."""
  text = f"{words.percent(value.mean)} %"
  if search_lib.has_interval(value):
    text += f" (95 % interval {words.percent(value.low)} to {words.percent(value.high)})"
  return text


def test_text(entry: Row | None) -> str:
  """ "52.2 [48.3, 56.0]" of the entry "accuracy"; empty for None."""
  if entry is None:
    return ""
  value = search_lib.estimate(entry, "accuracy")
  if not search_lib.has_interval(value):
    return words.percent(value.mean)
  return f"{words.percent(value.mean)} [{words.percent(value.low)}, {words.percent(value.high)}]"


def points_text(value: estimate.Estimate) -> str:
  """A difference in points, with its interval where that is known."""
  if math.isnan(value.mean):
    return "n/a"
  if search_lib.has_interval(value):
    return words.difference(value)
  return f"{100 * value.mean:+.1f}"


def certificate_lines(
  certificate: Row, names: Sequence[str], chosen: Sequence[str], most: int = 5
) -> list[str]:
  """How sure the choice is, and which sets may be better, in sentences.

  Args:
    certificate: of the record.
    names: all units.
    chosen: the set of the record; the certified one is named where it is another.
    most: sets that are listed.
  """
  own = list(certificate["chosen"]) == list(chosen)
  subject = "It" if own else search_lib.set_name(certificate["chosen"], names)
  level = f"{100 * certificate['level']:g} %"
  lines = [
    f"{subject} is the best of the sets tried with a probability of "
    f"{search_lib.chance_text(certificate['probability_best'])}; the best is expected to be above "
    f"it by {100 * certificate['expected_regret']:.2f} points."
  ]
  others = search_lib.in_doubt(certificate)
  if not others:
    return [*lines, f"Decided at {level}: no other set that was tried is left in doubt."]
  listed = [
    f"{search_lib.set_name(other['units'], names)} ({search_lib.chance_text(other['probability'])})"
    for other in others[:most]
  ]
  more = f" and {len(others) - most} more" if len(others) > most else ""
  count = "1 other set" if len(others) == 1 else f"{len(others)} other sets"
  text = f"Undecided at {level}: {count} may be the best, with the probability in brackets: "
  lines.append(f"{text}{'; '.join(listed)}{more}.")
  if len(others) == len(certificate["undecided"]):
    lines.append(f"The chosen set is not among those that hold the best at {level}.")
  return lines


def _fork_texts(record: Row, tried: Row) -> tuple[str, str]:
  """Millions of multiply-adds of the fork, and their share of the network."""
  total = search_lib.total_macs(record)
  share = f"{100 * tried['fork_macs'] / total:.0f} %" if total else ""
  return f"{tried['fork_macs'] / 1e6:.1f}", share


def format_text(record: Row, width: int = terminal.WIDTH) -> str:
  """The report as plain text for a terminal of `width` columns."""
  wide = min(width, 100)
  parts = ["\n".join(wrapped(line, wide) for line in headline(record))]
  parts.append(_ranking_text(record, width))
  parts += [text for text in (_profile_text(record, width), _paths_text(record, wide)) if text]
  parts.append("\n".join(wrapped(line, wide) for line in [*cost_lines(record), *_notes(record)]))
  return "\n\n".join(parts) + "\n"


def wrapped(text: str, width: int) -> str:
  """Lines of text; a number stays with its sign, from which a no-break space parts it."""
  text = text.replace(" %", f"{_JOINED}%")
  filled = textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False)
  return filled.replace(_JOINED, " ")


def _ranking_text(record: Row, width: int) -> str:
  header = ["held-out accuracy, %", "mean", "95 % interval", "against the chosen", "trained"]
  header += ["fork MMAC", "of network", "best"]
  rows = []
  for ranked in ranking(record, most=10):
    value = search_lib.estimate(ranked.tried)
    mark = "> " if ranked.role == "chosen" else "  "
    name = textwrap.wrap(ranked.name, 32, max_lines=4, break_on_hyphens=False)
    against = "chosen" if ranked.role == "chosen" else ""
    if ranked.against_chosen is not None:
      against = points_text(ranked.against_chosen)
    rows.append([
      mark + "\n    ".join(name),
      words.percent(value.mean),
      _interval_text(value),
      against,
      words.parameters(ranked.tried["trained_params"]),
      *_fork_texts(record, ranked.tried),
      search_lib.chance_text(ranked.probability),
    ])  # fmt: skip
  return terminal.grid(header, rows, width)


def _interval_text(value: estimate.Estimate) -> str:
  if not search_lib.has_interval(value):
    return "n/a"
  return f"{words.percent(value.low)} to {words.percent(value.high)}"


def _profile_text(record: Row, width: int) -> str:
  """The finetuning profile: each unit alone."""
  sets, rows = search_lib.by_units(record), []
  for unit in record["units"]:
    tried = sets.get((unit["name"],))
    if tried is not None:
      value = search_lib.estimate(tried)
      dropped = "" if tried["complete"] else "dropped by the race"
      dropped = "diverged" if tried.get("diverged") else dropped
      mark = "> " if unit["name"] in record["chosen"] else "  "
      rows.append([mark + unit["name"], words.percent(value.mean), _interval_text(value),
                   words.parameters(unit["params"]), dropped])  # fmt: skip
  if not rows:
    return ""
  header = ["one unit alone, %", "mean", "95 % interval", "parameters", ""]
  if not any(row[-1] for row in rows):
    header, rows = header[:-1], [row[:-1] for row in rows]
  return terminal.grid(header, rows, width)


def path_text(record: Row, path: Row) -> str:
  """A greedy search in a line: its start, its steps with their accuracies, why it ended."""
  names = search_lib.unit_names(record)
  direction = "forward" if path["start"] == search_lib.FORWARD else "backward"
  first = path["steps"][0]["base"] if path["steps"] else path["chosen"]
  parts = [search_lib.set_name(first, names)]
  start = search_lib.by_units(record).get(tuple(first))
  parts[0] += f" {words.percent(start['mean'])}" if start else ""
  for step in path["steps"]:
    came = [f"+{_JOINED}{name}" for name in step["chosen"] if name not in step["base"]]
    went = [f"\N{MINUS SIGN}{_JOINED}{name}" for name in step["base"] if name not in step["chosen"]]
    text = _JOINED.join([*came, *went, words.percent(step["score"])])
    parts.append(text if step["taken"] else f"(not taken: {text})")
  return f"{direction}, {rule_text(path)}: {', '.join(parts)}. Ended: {path['stopped']}"


def rule_text(path: Row) -> str:
  """The rule of a greedy search with the numbers that it uses, its budget, and racing."""
  rule = path["rule"]
  used = {"gain": ("epsilon",), "tolerant": ("epsilon",), "size": ("size",)}
  used = used.get(rule["kind"], ("alpha", "overlap"))
  numbers = [f"{key} {rule[key]:g}" for key in used if rule.get(key) is not None]
  text = f"rule {rule['kind']}" + (f" ({', '.join(numbers)})" if numbers else "")
  limits = [f"{k} {v:,g}" for k, v in (path["budget"] or {}).items() if v is not None]
  text += f", at most {', '.join(limits)}" if limits else ""
  return text + (", raced" if path["racing"] else "")


def _paths_text(record: Row, width: int) -> str:
  paths = search_lib.searches(record, search_lib.GREEDY)
  lines = [wrapped(path_text(record, path), width) for path in paths]
  return "\n".join(["Greedy searches, held-out accuracy in %", *lines]) if lines else ""


def cost_lines(record: Row) -> list[str]:
  """What the search cost, in sentences."""
  spent = record["cost"]
  lines = [
    f"{spent['trainings']:,} trainings ({spent['dropped_by_race']:,} spared by a race) in "
    f"{spent['seconds']:,.0f} seconds, and {spent['compile_seconds']:,.0f} seconds of compiling."
  ]
  ratio = search_plots.flop_ratio(record)
  scale, unit = search_plots.flop_unit(max(spent["flops"], spent["plain_flops"]))
  if ratio:
    lines.append(
      f"{spent['flops'] / scale:,.3g} {unit} in all. A plain search, whose "
      f"{spent['plain_trainings']:,} trainings run the whole network each, takes "
      f"{spent['plain_flops'] / scale:,.3g} {unit}, {ratio:.2g} times as much."
    )
  return [*lines, *map(str, spent["notes"])]


def _notes(record: Row) -> list[str]:
  more = _DIFFERENCES if record["data"]["num_folds"] > 1 else _ONE_SPLIT
  lines = [_OPTIMISM.format(count=f"{len(record['sets']):,} sets"), f"{_INTERVALS} {more}"]
  lines.append(
    "Fork: millions of multiply-adds that the task adds to the inference of one image when the "
    "network runs anyway. Best: probability of being the best set."
  )
  names = search_lib.unit_names(record)
  diverged = [t for t in record["sets"] if t.get("diverged")]
  if diverged:
    listed = "; ".join(search_lib.set_name(t["units"], names) for t in diverged)
    lines.append(f"{len(diverged):,} sets diverged and cannot be chosen: {listed}.")
  for tried in record["sets"]:
    if tried.get("exploded"):
      name = search_lib.set_name(tried["units"], names)
      lines.append(f"{name} exploded: {'; '.join(tried['exploded'])}.")
  dropped = sum(not (tried["complete"] or tried.get("diverged")) for tried in record["sets"])
  if dropped:
    lines.append(f"{dropped:,} sets were dropped by a race before their last fold: not ranked.")
  return lines


def _ranking_section(record: Row) -> str:
  rows = []
  colors = {"chosen": search_plots.COLOR, "head alone": search_plots.HEAD_COLOR}
  colors["all units"] = search_plots.ALL_COLOR
  for ranked in ranking(record):
    value, fork = search_lib.estimate(ranked.tried), _fork_texts(record, ranked.tried)
    name = html.escape(ranked.name)
    if ranked.role:
      name = html.swatch(colors[ranked.role]) + name
    if ranked.role == "chosen":
      name = f'<span class="best">{name}</span><small>chosen</small>'
    rows.append([
      name, interval_cell(value), difference_cell(ranked.against_chosen),
      words.parameters(ranked.tried["trained_params"]) + _share(record, ranked.tried),
      f"{fork[0]}<small>{fork[1]} of the network</small>",
      search_lib.chance_text(ranked.probability),
    ])  # fmt: skip
  header = ["Held-out accuracy, %", "Mean", "Against the chosen, points", "Parameters trained"]
  header += ["Fork, MMAC", "Best with probability"]
  notes = "".join(f"<p>{html.escape(line)}</p>" for line in _notes(record))
  return f"<h2>The best sets</h2>{html.grid(header, rows, 'results')}{notes}"


def _share(record: Row, tried: Row) -> str:
  share = tried["trained_params"] / max(record["backbone"]["num_params"], 1)
  return f"<small>{100 * share:.0f} % of all</small>"


def interval_cell(value: estimate.Estimate) -> str:
  """A mean, with its interval in small; HTML."""
  text = words.percent(value.mean)
  if search_lib.has_interval(value):
    text += f"<small>{words.percent(value.low)}\N{EN DASH}{words.percent(value.high)}</small>"
  return text


def difference_cell(value: estimate.Estimate | None) -> str:
  """A difference in points with its interval and what that says; HTML."""
  if value is None:
    return ""
  text = html.escape(points_text(value))
  if not search_lib.has_interval(value):
    return text
  css = "undecided" if value.verdict == estimate.UNDECIDED else "best"
  return f'{text}<small class="{css}">{value.verdict}</small>'


def certificate_section(record: Row, certificate: Row | None) -> str:
  """The certificate with all sets that it leaves undecided."""
  if certificate is None:
    return ""
  names = search_lib.unit_names(record)
  rows = [
    ("Certified", html.escape(search_lib.set_name(certificate["chosen"], names))),
    ("Best with probability", search_lib.chance_text(certificate["probability_best"])),
    ("Expected regret", f"{100 * certificate['expected_regret']:.2f} points"),
    ("Level", f"{100 * certificate['level']:g} %"),
    ("In words", html.escape(certificate["text"])),
  ]
  for number, other in enumerate(search_lib.in_doubt(certificate)):
    chance = search_lib.chance_text(other["probability"])
    text = f"{search_lib.set_name(other['units'], names)}: {chance}"
    rows.append(("Undecided" if number == 0 else "", html.escape(text)))
  if not search_lib.in_doubt(certificate):
    rows.append(("Undecided", "none: decided"))
  note = (
    "Expected regret: by how much the best set is above this one, on average over what the data "
    "leave possible. Undecided: the fewest sets that hold the best with a probability of the level."
  )
  return f"<h2>Certificate</h2>{html.fact_list(rows)}<p>{note}</p>"


def figures(record: Row) -> dict[str, document.Figure]:
  """The figures of a search by name, rendered; those that its record has nothing for are absent."""
  chosen = search_lib.set_name(record["chosen"], search_lib.unit_names(record))
  folds = "; dots: single folds" if record["data"]["num_folds"] > 1 else ""
  ranked = search_plots.ranked_pairs(record)
  best_pair = search_lib.set_name(ranked[0]["units"], ()) if ranked else ""
  drawn = [
    (
      "network", "What is trained", search_plots.network(record),
      f"Blocks of the network from input to head; trained in the chosen set: {chosen}.",
      "The network from input (left) to head (right). Coloured and ticked: trained. Below, paler: "
      "sets that the certificate does not rule out, with their probability of being the best.",
    ),
    (
      "profile", "Finetuning profile", search_plots.profile(record),
      "Held-out accuracy of each unit trained alone with the head, with intervals.",
      f"One unit and the head trained, all else frozen. Points: means, with 95 % intervals{folds}. "
      "Lines: the head alone and all units, with the bands of their intervals. Green columns: "
      "units of the chosen set. Bars, from zero: parameters of each unit.",
    ),
    (
      "windows", "Units in a row", search_plots.windows(record),
      "Held-out accuracy of units in a row, a series for each number of units.",
      "As above for units that follow each other, each point at the middle of its window. Filled: "
      "the chosen set.",
    ),
    (
      "pairs", "Pairs of units", search_plots.pairs(record),
      f"Heat map of the held-out accuracy of all pairs of units; the best is {best_pair}.",
      "Left: every pair, single units on the diagonal. A dot: the interval of the paired "
      "difference from the best pair includes 0. Each is a comparison by itself, over few folds: "
      "a pair may carry the dot and a better one not. Right: the best pairs with their intervals, "
      "grey where told apart from the first.",
    ),
    (
      "greedy", "Greedy search", search_plots.greedy(record),
      "Held-out accuracy and trained parameters at each step of the greedy searches.",
      "Each step takes the best of its candidates (dashes: the others; in a race, means of fewer "
      "folds). Hollow: the step that was not taken, with the reason above. Ringed: the set that "
      "the search returns. Bars, from zero: trained parameters with the head.",
    ),
    (
      "cost", "Cost of the search", search_plots.cost(record),
      "Trainings, seconds and operations of the search beside those of a plain one.",
      " ".join(cost_lines(record)),
    ),
  ]  # fmt: skip
  return {figure.name: figure for figure in document.rendered(drawn)}


@dataclasses.dataclass(frozen=True)
class Final:
  """The final comparison: the whole training set, and a test split that is read once."""

  summary: summary_lib.Summary
  figure: document.Figure
  link: str


def load_final(record: Row, workdir: str | os.PathLike) -> Final | None:
  """Reads the comparison that a search names; None if it names none.

  Raises:
    FileNotFoundError, ValueError: see `records.load`.
  """
  if record["final"] is None:
    return None
  folder = record["final"]["folder"]
  run = compare_record.load(pathlib.Path(workdir) / folder)
  summary = summary_lib.summarize(run)
  figure = document.Figure(
    "final_accuracy",
    "Test accuracy",
    f"Bar chart of the test accuracy of {', '.join(run.titles.values())}.",
    "Bars: mean over seeds. Lines: 95 % intervals. Dots: single seeds.",
    charts.png(compare_figures.accuracy_bars(run, summary)),
  )
  has_page = (pathlib.Path(workdir) / folder / html.PAGE).is_file()
  return Final(summary, figure, f"{folder}/{html.PAGE}" if has_page else "")


def _final_sections(final: Final | None) -> list[str]:
  if final is None:
    return []
  summary = final.summary
  link = ""
  if final.link:
    link = f'<p><a href="{html.escape(final.link)}">The whole report of this comparison</a></p>'
  return [
    html.results_section(summary, "Final comparison on the test split"),
    "<p>Trained on all training images; the test split was read once, after the search.</p>" + link,
    html.differences_section(summary),
    f"<h3>What the intervals mean</h3><p>{html.escape(summary_lib.interval_text(summary))}</p>",
    html.figure_section(final.figure),
  ]


def folds_text(data: Mapping) -> str:
  """How sets were scored: the folds and their sizes."""
  if data["num_folds"] == 1:
    return "one held-out split"
  sizes = data.get("fold_sizes") or []
  held = f" of {min(sizes):,} to {max(sizes):,} images" if sizes else ""
  return f"{data['num_folds']} folds{held}"


def _size_text(count: float) -> str:
  for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if count >= scale:
      return f"{count / scale:.3g} {unit}"
  return f"{count:g} bytes"


def data_rows(data: Mapping) -> list[tuple[str, str]]:
  """The images of a search, for `html.fact_list`."""
  split = f" ({data['split']})" if data.get("split") else ""
  images = f"{data['num_examples']:,} of {data['train']}{split}, {len(data['class_names'])} classes"
  rows = [("Images", html.escape(images)), ("Scored by", html.escape(folds_text(data)))]
  for key, title in (("fold_seed", "Seed of the folds"), ("seeds", "Seeds")):
    if data.get(key) is not None:
      value = data[key] if isinstance(data[key], list) else [data[key]]
      rows.append((title, html.escape(", ".join(map(str, value)))))
  return rows


def _facts(record: Row) -> str:
  spent = record["cost"]
  kept = f"{_size_text(spent['prefix_peak_bytes'])} at most, "
  kept += f"of {_size_text(spent['prefix_budget_bytes'])} allowed"
  names = ", ".join(search_lib.unit_names(record))
  rows = [
    *html.run_rows(record),
    *html.backbone_rows(record["backbone"]),
    *data_rows(record["data"]),
    ("Units", html.escape(f"{len(record['units'])}: {names}")),
    ("Sets tried", f"{len(record['sets']):,}"),
    ("Outputs of frozen blocks kept", kept),
  ]
  return f"<h2>The run</h2>{html.fact_list(rows)}"


def _searches_section(record: Row) -> str:
  rows = []
  for search in record["searches"]:
    if search["kind"] == search_lib.GREEDY:
      rows.append(("Greedy", html.escape(path_text(record, search))))
    elif search["kind"] == search_lib.WINDOWS:
      rows.append(("Windows", f"every {search['width']} units in a row"))
    else:
      text = {"profile": "every unit alone", "pairs": "every two units"}[search["kind"]]
      rows.append((search["kind"].capitalize(), text))
  return f"<h3>What was searched</h3>{html.fact_list(rows)}" if rows else ""


def page(record: Row, drawn: Mapping[str, document.Figure], final: Final | None) -> str:
  """The whole page as text."""
  data = record["data"]
  first, *others = headline(record)
  sections = {name: html.figure_section(figure) for name, figure in drawn.items()}
  body = [
    f"<h1>{html.escape(record['title'])}</h1>",
    f'<p class="quiet">{html.escape(record["name"])}, {html.escape(record["created"])}. '
    f"{data['num_examples']:,} images, {html.escape(folds_text(data))}.</p>",
    f'<p class="best">{html.escape(first)}</p>',
    *(f"<p>{html.escape(line)}</p>" for line in others),
    sections.get("network", ""),
    *_final_sections(final),
    _ranking_section(record),
    certificate_section(record, record["certificate"]),
    *(sections.get(name, "") for name in ("profile", "windows", "pairs", "greedy", "cost")),
    _facts(record),
    _searches_section(record),
    html.settings(record["config"]),
    html.attribution(data.get("attribution")),
  ]
  return html.document(record["title"], body)


def write_page(record: Row, workdir: str | os.PathLike) -> pathlib.Path:
  """Writes report.html and figures/*.png into `workdir`; returns the page's path.

  Raises:
    FileNotFoundError, ValueError: the final comparison that the record names cannot be read.
  """
  final = load_final(record, workdir)
  drawn = figures(record)
  written = [*drawn.values(), *([final.figure] if final else [])]
  return html.write(workdir, page(record, drawn, final), written)
