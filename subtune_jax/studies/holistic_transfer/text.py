"""The tables of a study of holistic transfer as plain text."""

from collections.abc import Mapping, Sequence
from typing import Any

from subtune_jax.report import estimate, terminal, words

Row = Mapping[str, Any]
_CALIBRATIONS = {"none": "", "alg": "+ ALG", "pcv": "+ PCV", "star": "+ gamma*"}
_PAIRS = ("Y/Y", "S/Y", "U/Y")
_REFERENCES = {"pretrained": "source model", "ft": "fine-tuning"}
_DIFFERENCES = "Differences in points, paired 95 % intervals over test concepts and seeds"


def format_text(record: Row, *, width: int = 110) -> str:
  """The paper's table over seeds, then SubTuning per unit, sizes and the sweep where there are any.

  Args:
    record: of results.json (`holistic_transfer.run`).
    width: of the text, in characters.
  """
  body = record["holistic"]
  seen = body["partitions"][0]["num_seen"]
  parts = [
    f"{record['data']['train']}: {seen} of {len(record['data']['class_names'])} classes seen, "
    f"{len(record['config']['seeds'])} seeds; % of {record['data']['num_test']} test images",
    _accuracies(body["table"], width),
    "*: every class counts the same; the others are over images. (oracle): reads what no method\n"
    "may, test labels or training images of absent classes.",
  ]
  if any(row.get("against") for row in body["table"]):
    parts += [_DIFFERENCES, _differences(body["table"], width)]
  if body["blocks"]:
    parts += ["SubTuning of each unit", _accuracies(body["blocks"], width), _gaps(body, width)]
  for use, title in (("size", "Number of seen classes"), ("sweep", "Optimisers")):
    rows = [n for n in body["networks"] if n["use"] == use]
    if rows:
      parts += [title, _single(rows, body["partitions"], use, width)]
  return "\n\n".join(parts)


def _accuracies(rows: Sequence[Row], width: int) -> str:
  header = ["", *_PAIRS, "AUSUC", "U/U", *(f"{pair} *" for pair in _PAIRS), "gamma"]
  cells = []
  for row in rows:
    numbers = row["numbers"]
    micro, balanced = (numbers["accuracy"][name] for name in ("micro", "balanced"))
    values = [micro[p] for p in _PAIRS] + [numbers["ausuc"], micro["U/U"]]
    values += [balanced[p] for p in _PAIRS]
    cells.append([_title(row), *(words.percent(v["mean"]) for v in values),
                  f"{numbers['gamma']['mean']:.2f}"])  # fmt: skip
  return terminal.grid(header, cells, width)


def _differences(rows: Sequence[Row], width: int) -> str:
  """Every row but the oracles' against the source model and against fine-tuning, over images."""
  columns = [(reference, name) for reference in _REFERENCES for name in ("U/Y", "Y/Y")]
  header = ["", *(f"{name} minus\n{_REFERENCES[reference]}" for reference, name in columns)]
  cells = []
  for row in (row for row in rows if not row["oracle"]):
    found = [row["against"].get(reference, {}).get(name) for reference, name in columns]
    texts = [words.difference(estimate.Estimate(*f)) if f else "" for f in found]
    cells.append([_title(row), *texts])
  return terminal.grid(header, cells, width)


def _title(row: Row) -> str:
  text = f"{row['title']} {_CALIBRATIONS[row['calibration']]}".strip()
  return text + " (oracle)" * row["oracle"]


def _gaps(body: Row, width: int) -> str:
  """The gap of the logits per unit: what gamma has to make up for."""
  header = ["", "gap (ALG)", "seen over absent", "P(U|x), absent", "answered absent", "NCM U/Y"]
  cells = []
  rows = [r for r in (*body["table"], *body["blocks"]) if r["calibration"] == "none"]
  for row in rows:
    if row["method"] not in ("pretrained", "ft") and row not in body["blocks"]:
      continue
    numbers = row["numbers"]
    gamma = next(
      r["numbers"]["gamma"]["mean"] for r in (*body["table"], *body["blocks"])
      if r["title"] == row["title"] and r["calibration"] == "alg"
    )  # fmt: skip
    absent = numbers["probabilities"]["absent"]
    cells.append([
      row["title"], f"{gamma:.2f}", f"{numbers['margins']['seen_over_absent']['mean']:.2f}",
      words.percent(absent["p_absent"]["mean"]), words.percent(absent["answered_absent"]["mean"]),
      words.percent(numbers["ncm"]["cosine"]["micro"]["U/Y"]["mean"]),
    ])  # fmt: skip
  return terminal.grid(header, cells, width)


def _single(networks: Sequence[Row], partitions: Sequence[Row], use: str, width: int) -> str:
  """A line per network of one seed."""
  header = ["", "rate", "U/Y", "U/U", "AUSUC", "NCM, shared U"]
  cells = []
  for network in networks:
    place = partitions[network["partition"]]
    name = network["title"]
    if use == "size":
      name = f"{place['num_seen']} classes, {place['how']}, seed {place['seed']}"
    values = ["diverged", "", ""]
    if network["epochs"]:
      last = network["epochs"][-1]
      micro = last["accuracy"]["none"]["micro"]
      values = [words.percent(v) for v in (micro["U/Y"], micro["U/U"], last["ausuc"])]
    shared = network.get("common", {}).get("ncm")
    shown = words.percent(shared["Y"]) if shared else ""
    cells.append([name, f"{network['learning_rate']:g}", *values, shown])
  return terminal.grid(header, cells, width)
