"""LP, FT, LP-FT and SubTuning against the number of training images, and which unit helps when.

Each size is a search in WORKDIR/sizes/N on a nested subset of the training images, and a final
comparison in which SubTuning trains what that search chose (SubTuning, section on data-set size).
"""

import os
import pathlib
import sys
from typing import Any, TextIO

from subtune_jax.report import estimate as estimate_lib
from subtune_jax.runner import provenance
from subtune_jax.runner import workdir as workdir_lib
from subtune_jax.studies import fields, publish
from subtune_jax.studies import nested_search as studies
from subtune_jax.studies.dataset_size import page as size_page
from subtune_jax.studies.dataset_size import record as size_record
from subtune_jax.studies.search import config as search_config
from subtune_jax.studies.search import record as search_record

Row = dict[str, Any]
SIZES = "sizes"  # folder of the searches


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
    ValueError: see `search.run`; sizes that do not rise.
  """
  stream = stream or sys.stdout
  sizes = tuple(config.sizes)
  if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
    raise ValueError(f"sizes is {sizes}; give at least one, rising, from 1")
  if not config.search.final:
    raise ValueError("search.final is False; this study compares the methods at each size")
  search_config.check(config)
  workdir, _ = workdir_lib.enter(workdir, config)
  rows, found = [], []
  for number, size in enumerate(sizes, start=1):
    stream.write(f"size {number} of {len(sizes)}: {size} images\n")
    folder = workdir / SIZES / str(size)
    record = studies.run_search(folder, _search_config(config, size), command, stream)
    rows.append(_size_row(folder, size, record))
    found.append(record)
  record = _record(config, rows, found, workdir, command)
  workdir_lib.write_json(workdir / fields.RESULTS, record)
  publish.publish(size_page.report(size_record.load(workdir), workdir), workdir, stream)
  return record


def _search_config(config: Any, size: int) -> Any:
  title = f"{config.title}: {size} images"
  own = studies.own_config(config, ("sizes",), f"{config.name}-{size}", title)
  own.data.num_train = size
  return own


def _size_row(folder: pathlib.Path, asked: int, record: search_record.Record) -> size_record.Size:
  methods = studies.scores_on_test(folder)
  final, _ = studies.final_run(folder)
  return {
    "asked": asked, "size": final.record["data"]["num_train"], "folder": f"{SIZES}/{asked}",
    "chosen": record["chosen"],
    "methods": [{"name": name, **row} for name, row in methods.items()],
    "against_ft": studies.against(folder, "ft"),
  }  # fmt: skip


def _record(
  config: Any, rows: list[size_record.Size], found: list[search_record.Record],
  workdir: pathlib.Path, command: str,
) -> size_record.Record:  # fmt: skip
  last = found[-1]
  final, summary = studies.final_run(workdir / rows[-1]["folder"])
  test = summary.columns[0].key
  names = [unit["name"] for unit in last["units"]]
  return {
    **fields.header(config, command), **provenance.header_of(last),
    "config": workdir_lib.as_json(config),
    "backbone": last["backbone"],
    "data": {
      "train": last["data"]["train"], "class_names": last["data"]["class_names"],
      "attribution": last["data"]["attribution"], "test": test,
      "num_test": final.record["data"]["num_test"][test],
    },
    "sizes": rows,
    "map": {
      "units": names,
      "rows": [
        {"size": row["size"], **unit}
        for row, record in zip(rows, found, strict=True)
        for unit in studies.profile_rows(record)
      ],
      "head": [
        {"size": row["size"], **head}
        for row, record in zip(rows, found, strict=True)
        if (head := studies.set_row(record, ()))
      ],
    },
    "crossover": {"text": crossover(rows)},
  }  # fmt: skip


def crossover(rows: list[size_record.Size], method: str = "subtuning") -> str:
  """Where SubTuning and full fine-tuning change places, said no more firmly than the data do."""
  verdicts = []
  for row in rows:
    difference = row["against_ft"].get(method)
    if difference is None:
      continue
    estimate = estimate_lib.Estimate(difference["mean"], difference["low"], difference["high"])
    verdicts.append((row["size"], estimate))
  if not verdicts:
    return "SubTuning and full fine-tuning were not both run."
  above = [str(n) for n, e in verdicts if e.verdict == estimate_lib.HIGHER]
  below = [str(n) for n, e in verdicts if e.verdict == estimate_lib.LOWER]
  open_ = [str(n) for n, e in verdicts if e.verdict == estimate_lib.UNDECIDED]
  parts = [
    f"{what} at {', '.join(sizes)} images"
    for what, sizes in (
      ("SubTuning is above full fine-tuning", above), ("below it", below), ("undecided", open_)
    )
    if sizes
  ]  # fmt: skip
  signs = [estimate.mean > 0 for _, estimate in verdicts]
  change = next((i for i in range(1, len(signs)) if signs[i] != signs[i - 1]), None)
  end = "The means do not change sign." if change is None else (
    f"The means change sign between {verdicts[change - 1][0]} and {verdicts[change][0]} images."
  )  # fmt: skip
  return f"{'; '.join(parts)}. {end}"
