"""Which units to tune under which shift: a profile and a greedy search for each corruption.

Each shift is a search in WORKDIR/corruptions/NAME, and a final comparison on its test images
(SubTuning, section on CIFAR-10-C; Lee et al. 2023, "Surgical fine-tuning").
"""

import os
import pathlib
import sys
from typing import Any, TextIO

from subtune_jax import data
from subtune_jax.runner import provenance
from subtune_jax.runner import workdir as workdir_lib
from subtune_jax.studies import fields, publish
from subtune_jax.studies import nested_search as studies
from subtune_jax.studies.corruption import config as corruption_config
from subtune_jax.studies.corruption import page as corruption_page
from subtune_jax.studies.corruption import record as corruption_record
from subtune_jax.studies.search import config as search_config
from subtune_jax.studies.search import record as search_record

Row = dict[str, Any]
FOLDER = "corruptions"


def run(
  config: Any, workdir: str | os.PathLike, *, command: str = "", stream: TextIO | None = None
) -> Row:
  """Runs the study, or goes on with one that was killed.

  Args:
    config: from `config.default()`.
    workdir: where everything is written.
    command: how the run was started, for the report.
    stream: where progress and the tables go; standard output by default.

  Returns:
    The record, as written to WORKDIR/results.json.

  Raises:
    ValueError: see `search.run`; a shift that does not exist.
  """
  stream = stream or sys.stdout
  shifts = tuple(config.shifts)
  if not shifts or len(set(shifts)) != len(shifts):
    raise ValueError(f"shifts is {shifts}; give at least one, each once")
  search_config.check(config)
  configs = {shift: _search_config(config, shift) for shift in shifts}
  for own in configs.values():
    data.require(own.data.train)
  workdir, _ = workdir_lib.enter(workdir, config)
  rows, record = [], None
  for number, (shift, own) in enumerate(configs.items(), start=1):
    stream.write(f"shift {number} of {len(shifts)}: {shift}\n")
    folder = workdir / FOLDER / shift.replace("/", "-")
    record = studies.run_search(folder, own, command, stream)
    rows.append(_row(folder, shift, record))
  study = _record(config, rows, record, command)
  workdir_lib.write_json(workdir / fields.RESULTS, study)
  publish.publish(corruption_page.report(corruption_record.load(workdir), workdir), workdir, stream)
  return study


def _search_config(config: Any, shift: str) -> Any:
  name = f"{config.name}-{shift.replace('/', '-')}"
  own = studies.own_config(config, ("shifts", "corrupted"), name, f"{config.title}: {shift}")
  own.data.flip_labels = shift == corruption_config.FLIP
  if shift not in (corruption_config.CLEAN, corruption_config.FLIP):
    own.data.train = config.corrupted.format(shift)
  return own


def _row(folder: pathlib.Path, shift: str, record: search_record.Record) -> corruption_record.Shift:
  name, _, severity = shift.partition("/")
  units = tuple(unit["name"] for unit in record["units"])
  return {
    "corruption": name, "severity": int(severity or 0), "title": name.replace("_", " "),
    "name": record["data"]["train"], "folder": f"{FOLDER}/{folder.name}",
    "order": _order(record), "chosen": record["chosen"],
    "profile": list(studies.profile_rows(record)), "head": studies.set_row(record, ()),
    "all": studies.set_row(record, units), "certificate": record["certificate"],
    "test": studies.scores_on_test(folder) if record["final"] else None,
  }  # fmt: skip


def _order(record: search_record.Record) -> list[corruption_record.Added]:
  """The units in the order in which the forward search added them."""
  paths = [s for s in record["searches"] if s["kind"] == "greedy" and s["start"] == "none"]
  order = []
  for step in paths[0]["steps"] if paths else []:
    (unit,) = set(step["chosen"]) - set(step["base"])
    order.append({"unit": unit, "score": step["score"], "taken": step["taken"]})
  return order


def _record(
  config: Any, rows: list[corruption_record.Shift], last: search_record.Record, command: str
) -> corruption_record.Record:
  return {
    **fields.header(config, command), **provenance.header_of(last),
    "config": workdir_lib.as_json(config),
    "backbone": last["backbone"],
    "data": {
      **{k: last["data"][k] for k in ("class_names", "num_examples", "num_folds", "attribution")},
      "train": config.data.train,
    },
    "units": last["units"], "rows": rows,
  }  # fmt: skip
