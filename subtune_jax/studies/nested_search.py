"""What the studies share: searches in folders of their own, and figures from their records."""

from collections.abc import Iterator
import gc
import pathlib
from typing import Any, TextIO

import jax

from subtune_jax.runner import workdir as workdir_lib
from subtune_jax.statistics import intervals
from subtune_jax.studies import fields
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import summary as summary_lib
from subtune_jax.studies.search import checks
from subtune_jax.studies.search import config as search_config
from subtune_jax.studies.search import record as search_record
from subtune_jax.studies.search import run as search

Row = dict[str, Any]


def finished(folder: pathlib.Path, config: Any) -> Row | None:
  """The record of a search that an earlier start has finished in `folder`, or None.

  Raises:
    ValueError: it was run with other settings, or its record is damaged.
  """
  if not (folder / fields.RESULTS).is_file():
    return None
  record = fields.read(folder)
  changed = workdir_lib.differences(record["config"], workdir_lib.as_json(config))
  if changed:
    raise ValueError(
      f"{folder} holds results of another config:\n  " + "\n  ".join(changed)
      + "\nchoose another --workdir, or go back to the old values"
    )  # fmt: skip
  return record


def run_search(
  folder: pathlib.Path, config: Any, command: str, stream: TextIO
) -> search_record.Record:
  """The record of one search of a study: read, or run now.

  Raises:
    ValueError: what the search raises, with the folder's name.
  """
  record = finished(folder, config)
  if record is None:
    try:
      record = search.run(config, folder, command=command, stream=stream, forecasted=False)
    except ValueError as e:
      raise ValueError(f"{folder.name}: {e}") from e
    jax.clear_caches()  # the next one has other shapes
    gc.collect()
  return record


def own_config(config: Any, own_fields: tuple[str, ...], name: str, title: str) -> Any:
  """The search of one part of a study: its config without the study's own fields."""
  own = config.copy_and_resolve_references()
  with own.unlocked():
    for field in own_fields:
      del own[field]
  made = search_config.default()
  made.update(own)
  made.experiment = "search"
  made.name, made.title = name, title
  return made


def final_run(folder: pathlib.Path) -> tuple[compare_record.Run, summary_lib.Summary]:
  """The final comparison of a search, and its statistics."""
  run = compare_record.load(folder / search_config.FINAL)
  return run, summary_lib.summarize(run)


def scores_on_test(folder: pathlib.Path) -> dict[str, Row]:
  """Test accuracy in distribution of each method of a final comparison, with its interval."""
  run, summary = final_run(folder)
  key = summary.columns[0].key
  return {
    row.name: {
      "accuracy": row.accuracy[key].mean, "low": row.accuracy[key].low,
      "high": row.accuracy[key].high,
      "by_seed": [t["test"][run.record["data"]["id"]]["accuracy"] for t in run.chosen(row.name)],
      "title": row.title, "value": row.value, "setting": row.setting,
    }
    for row in summary.rows
  }  # fmt: skip


def against(folder: pathlib.Path, reference: str) -> dict[str, Row]:
  """Test accuracy of each method minus that of `reference`, paired, with its interval."""
  run, _ = final_run(folder)
  test = run.tests[run.record["data"]["id"]]
  correct = {name: test.correct(name) for name in run.methods}
  if reference not in correct:
    return {}
  made = intervals.paired_bootstrap(correct, test.groups, reference=reference)
  return {
    name: {"mean": mean, "low": low, "high": high}
    for name, (mean, low, high) in made.differences.items()
  }


def profile_rows(record: search_record.Record) -> Iterator[checks.OfUnit]:
  """The scores of the single units of a search's record, in the order of the network.

  A unit whose training diverged has no score and is left out.
  """
  single = {
    tuple(row["units"]): row
    for row in record["sets"]
    if len(row["units"]) == 1 and not row.get("diverged")
  }
  for unit in record["units"]:
    row = single.get((unit["name"],))
    if row:
      yield {"unit": unit["name"], **{k: row[k] for k in ("mean", "low", "high", "by_fold")}}


def set_row(record: search_record.Record, units: tuple[str, ...]) -> checks.Mean | None:
  """The score of a set in a search's record, None where it diverged; () is the head alone."""
  found = (
    row for row in record["sets"] if tuple(row["units"]) == units and not row.get("diverged")
  )
  return next(({k: row[k] for k in ("mean", "low", "high")} for row in found), None)
