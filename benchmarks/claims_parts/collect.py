"""Takes out of a workdir what the table of claims needs; the workdir itself is not kept."""

from collections.abc import Mapping
import pathlib
import re
from typing import Any

import numpy as np

from benchmarks.claims_parts import archive as archive_lib
from subtune_jax import calibration, data, files
from subtune_jax.data import dataset, splits
from subtune_jax.studies import epoch_files, fields
from subtune_jax.studies.active_learning import run as active_learning
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.holistic_transfer import record as holistic_record
from subtune_jax.studies.robustness import record as robustness_record
from subtune_jax.training import ledger

Row = dict[str, Any]
CROSS_FITTED = "the block that the other folds choose"
HEAD, EVERYTHING = "head alone", "all blocks"
AFTER_EPOCHS = " after every epoch"  # the name of a set that fewer images of were read then


def collect(workdir: pathlib.Path) -> archive_lib.Archive:
  """The archive of a finished run of any study that the table reads.

  Raises:
    ValueError: the run is of another study.
  """
  record = fields.read(workdir)
  collectors = {
    "compare": _compare, "robustness": _robustness, "holistic_transfer": _holistic,
    "dataset_size": _sizes, "active_learning": _active_learning, "corruption": _corruptions,
    "search": _search,
  }  # fmt: skip
  kind = fields.kind_of(record)
  if kind not in collectors:
    raise ValueError(f"{workdir} holds no run that the claims are read from: kind is {kind!r}")
  return collectors[kind](workdir, record)


def _compare(workdir: pathlib.Path, record: Row) -> archive_lib.Archive:
  run = compare_record.load(workdir)
  return archive_lib.Archive(_facts(record) | {"rates": _rates(record)}, _tests(run))


def _search(workdir: pathlib.Path, record: Row) -> archive_lib.Archive:
  return archive_lib.Archive(_facts(record), {record["data"]["train"]: _profile(workdir, record)})


def _facts(record: Mapping[str, Any]) -> Row:
  """How to run it again."""
  names = ("command", "created", "versions", "devices")
  made = {name: record[name] for name in names if name in record}
  made["command"] = re.sub(r" '?--workdir=\S+", "", made["command"])  # a place on one machine
  data_ = record["data"]
  made["data"] = {
    k: data_[k] for k in ("train", "id", "ood", "num_train", "num_test") if k in data_
  }
  made["network"] = record["backbone"]["name"]
  made["image_size"] = record["config"]["data"]["image_size"]
  made["seeds"] = list(record["config"]["seeds"])
  return made


def _rates(record: Mapping[str, Any]) -> Row:
  """Method -> [learning rate chosen, whether it is the first or last of its grid]."""
  return {m["name"]: [m["learning_rate"], m["grid_edge"]] for m in record["methods"]}


def _codes(groups: np.ndarray) -> np.ndarray:
  return np.unique(groups, return_inverse=True)[1]


def _tests(run: compare_record.Run) -> dict[str, archive_lib.Answers]:
  """Every test set of a comparison. Groups of all sets have one numbering."""
  names = np.unique(np.concatenate([test.groups for test in run.tests.values()]))
  return {
    name: archive_lib.Answers(
      test.labels, np.searchsorted(names, test.groups), dict(test.predicted)
    )
    for name, test in run.tests.items()
  }


def _robustness(workdir: pathlib.Path, _: Row) -> archive_lib.Archive:
  run = compare_record.load(workdir)
  study = robustness_record.of(run.record)
  most = run.record["config"]["robustness"]["test_images"]
  sets, whole = _tests(run), dict(run.tests)
  for name, test in whole.items():
    rows = np.arange(len(test.labels))
    if 0 < most < len(rows):
      rows = splits.nested_subsets(test.labels, [most], 0, test.groups)[0]
    found = {}
    for method in study.methods:
      for rule in study.rules:
        found[f"{method} by {rule}"] = _after(workdir, study, method, rule, name)
    own = sets[name]
    sets[name + AFTER_EPOCHS] = archive_lib.Answers(own.labels[rows], own.groups[rows], found)
  moved = {
    method: {
      side: study.block_distortion(method, "relative", ood=side == "ood")[:, -1].tolist()
      for side in ("id", "ood")
    }
    for method in study.tuned
  }
  facts = _facts(run.record) | {"rates": _rates(run.record), "moved": moved}
  return archive_lib.Archive(facts | {"shift": study.entry["shift"]}, sets)


def _after(workdir, study, method: str, rule: str, name: str) -> np.ndarray:
  """[seeds, n] answers of the epochs that a rule chose."""
  numbers = study.selection(rule, method)["epochs"]
  found = []
  for row, number in zip(study.picked(rule, method), numbers, strict=True):
    last = row["epochs"][-1]["stage"]
    path = epoch_files.path(workdir, row["key"], {"stage": last, "epoch": number})
    found.append(epoch_files.read(path)[f"logits/{name}"].argmax(-1))
  return np.stack(found)


def _holistic(workdir: pathlib.Path, record: Row) -> archive_lib.Archive:
  study = holistic_record.of(record, workdir)
  config = record["config"]
  test = data.load(config["data"]["train"], "test", config["data"]["image_size"])
  networks: dict[str, dict[int, Row]] = {}
  for network in study.networks():
    if network["use"] in ("pretrained", "main", "wise", "block"):
      networks.setdefault(_column(network), {})[network["seed"]] = network
  seeds = sorted(networks[holistic_record.FT])
  absent = np.stack([
    study.absent(study.partition(networks[holistic_record.FT][seed])) for seed in seeds
  ])  # fmt: skip
  found: dict[str, list[np.ndarray]] = {}
  gammas: dict[str, list[float]] = {}
  for title, by_seed in networks.items():
    for mask, seed in zip(absent, seeds, strict=True):
      last = by_seed[seed]["epochs"][-1]
      arrays = epoch_files.read(workdir / last["file"])
      if not np.array_equal(arrays["test/labels"], test.labels):
        raise ValueError(f"{last['file']} is of other images than {config['data']['train']}")
      for column, answers in _answers(arrays, mask, last["gamma"]).items():
        found.setdefault(title + column, []).append(answers)
      for kind, gamma in last["gamma"].items():
        gammas.setdefault(f"{title} {kind}", []).append(gamma)
  answers = archive_lib.Answers(
    test.labels, _codes(test.groups), {title: np.stack(rows) for title, rows in found.items()}
  )
  area = {
    f"{row['method']} {row['calibration']} - {name}": own["AUSUC"]
    for row in record["holistic"]["table"] for name, own in row.get("against", {}).items()
  }  # fmt: skip
  facts = _facts(record) | {"gamma": gammas, "ausuc": area, "source": config["source"]["data"]}
  return archive_lib.Archive(facts, {config["data"]["train"]: answers}, absent)


def _column(network: Row) -> str:
  return network["method"] if network["use"] != "block" else network["title"]


def _answers(arrays, absent: np.ndarray, gammas: Mapping[str, float]) -> dict[str, np.ndarray]:
  """The ends of columns -> [n] answers of one network, among absent classes alone too."""
  logits = arrays["test/logits"]
  made = {"": logits.argmax(-1)}
  for kind, gamma in gammas.items():
    made[f" + {kind}"] = np.asarray(calibration.calibrate(logits, absent, gamma)).argmax(-1)
  made[" among absent"] = np.where(absent, logits, -np.inf).argmax(-1)
  if "test/features" in arrays:
    means, counts = calibration.class_means(
      arrays["train/features"], arrays["train/labels"], len(absent)
    )
    scores = calibration.ncm_logits(arrays["test/features"], means, counts)
    made[" by nearest means"] = np.asarray(scores).argmax(-1)
  return made


def _sizes(workdir: pathlib.Path, record: Row) -> archive_lib.Archive:
  sets: dict[str, archive_lib.Answers] = {}
  chosen = {}
  for row in record["sizes"]:
    run = compare_record.load(workdir / row["folder"] / "final")
    for name, own in _tests(run).items():
      columns = {f"{method} {row['size']}": p for method, p in own.predicted.items()}
      before = sets[name].predicted if name in sets else {}
      sets[name] = archive_lib.Answers(own.labels, own.groups, {**before, **columns})
    chosen[row["size"]] = {"rates": _rates(run.record), "blocks": row["chosen"]}
  return archive_lib.Archive(_facts(record) | {"chosen": chosen}, sets)


def _active_learning(workdir: pathlib.Path, record: Row) -> archive_lib.Archive:
  """Whether each answer was right, as class 1 where all labels are 1: a round keeps no more."""
  pool = record["data"]["pool"]
  test = data.load(pool, "test", record["config"]["data"]["image_size"])
  found = {}
  for method in record["methods"]:
    for rule in method["rules"]:
      folder = workdir / active_learning.ROUNDS / method["name"] / rule["rule"]
      for total in record["totals"]:
        paths = [folder / f"seed{seed}-{total}.npz" for seed in record["seeds"]]
        own = [files.read_npz(path, "a round")["right"] for path in paths]
        found[f"{method['name']} {rule['rule']} {total}"] = np.stack(own)
  facts = _facts(record) | {"data": {"train": pool, "id": pool, "ood": []}}
  answers = archive_lib.Answers(np.ones(len(test.labels), int), _codes(test.groups), found)
  return archive_lib.Archive(facts, {pool: answers})


def _corruptions(workdir: pathlib.Path, record: Row) -> archive_lib.Archive:
  sets, chosen = {}, {}
  for row in record["rows"]:
    folder = workdir / row["folder"]
    sets[f"{row['corruption']}, held out"] = _profile(folder / "search", fields.read(folder))
    if (folder / "final").is_dir():
      run = compare_record.load(folder / "final")
      (own,) = _tests(run).values()
      sets[row["corruption"]] = own
      chosen[row["corruption"]] = {"rates": _rates(run.record), "blocks": row["chosen"]}
  return archive_lib.Archive(_facts(record) | {"chosen": chosen}, sets)


def _profile(folder: pathlib.Path, record: Row) -> archive_lib.Answers:
  """Answers on held-out folds of the head alone, each unit alone and all units."""
  config = record["config"]
  split = config["search"]["split"]
  examples = data.load(config["data"]["train"], split, config["data"]["image_size"])
  if config["data"]["flip_labels"]:
    examples = dataset.flip_labels(examples)
  folds: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
  units = [unit["name"] for unit in record["units"]]
  titles = {(): HEAD, tuple(units): EVERYTHING} | {(u,): u for u in units}
  for row in ledger.Ledger(folder / "ledger.jsonl").rows().values():
    title = titles.get(tuple(row["units"]))
    if title is None or row["accuracy"] is None or row["seed"] != config["search"]["seeds"][0]:
      continue
    arrays = files.read_npz(folder / "logits" / f"{row['key']}.npz", "held-out logits")
    folds.setdefault(title, {})[row["fold"]] = (arrays["rows"], arrays["logits"].argmax(-1))
  number = config["search"]["folds"]
  whole = {title: own for title, own in folds.items() if len(own) == number}
  predicted = {title: _joined(own, len(examples.labels)) for title, own in whole.items()}
  labels = np.asarray(examples.labels)
  predicted[CROSS_FITTED] = _cross_fitted(whole, predicted, units, labels)
  return archive_lib.Answers(
    labels, _codes(examples.groups), {title: p[None] for title, p in predicted.items()}
  )


def _joined(own: Mapping[int, tuple[np.ndarray, np.ndarray]], number: int) -> np.ndarray:
  """[n] answers of all folds, in the order of the data."""
  found = np.zeros(number, np.int64)
  for rows, answers in own.values():
    found[rows] = answers
  return found


def _cross_fitted(whole, predicted, units, labels: np.ndarray) -> np.ndarray:
  """[n] answers; each fold takes the unit that is best on the others, so no choice flatters it."""
  found = np.zeros(len(labels), np.int64)
  there = [unit for unit in units if unit in predicted]
  for rows, _ in next(iter(whole.values())).values():
    others = np.setdiff1d(np.arange(len(labels)), rows)
    best = max(there, key=lambda unit: np.mean(predicted[unit][others] == labels[others]))
    found[rows] = predicted[best][rows]
  return found
