"""The record of a study of holistic transfer is put together; `record` declares it."""

from collections.abc import Iterator, Mapping, Sequence
import shutil
from typing import Any

import numpy as np

from subtune_jax import data, files
from subtune_jax.calibration import class_splits
from subtune_jax.robustness import interpolation
from subtune_jax.runner import network as network_lib
from subtune_jax.runner import provenance
from subtune_jax.runner import workdir as workdir_lib
from subtune_jax.studies import epoch_files, fields, publish
from subtune_jax.studies.holistic_transfer import best
from subtune_jax.studies.holistic_transfer import config as holistic_config
from subtune_jax.studies.holistic_transfer import intervals as holistic_intervals
from subtune_jax.studies.holistic_transfer import numbers as holistic_numbers
from subtune_jax.studies.holistic_transfer import page as holistic_page
from subtune_jax.studies.holistic_transfer import record as holistic_records
from subtune_jax.studies.holistic_transfer import trainings as holistic_study
from subtune_jax.training import export

Row = dict[str, Any]


def finish(study: holistic_study.Study, trained: holistic_study.Trained, command: str) -> Row:
  """Reads what was stored, writes the record, removes what it does not name, prints the table."""
  study.run.progress.line("reading what was stored of every epoch")
  body = _body(study, trained)
  config, target = study.config, study.target
  names = (config.data.train, study.source.facts["data"])
  record: holistic_records.Record = {
    **fields.header(config, command),
    **provenance.run_facts(study.source.engine.mesh), "config": workdir_lib.as_json(config),
    "backbone": network_lib.backbone_row(
      config, study.source.engine.model, study.source.pretrained
    ),
    "data": {
      "train": config.data.train, "source": study.source.facts["data"],
      "class_names": list(target.train.class_names), "num_train": len(target.train),
      "num_validation": len(target.validation), "num_test": len(target.test),
      "attribution": "; ".join(filter(None, (data.attribution(n) for n in names if n))),
    },
    "holistic": body,
  }  # fmt: skip
  workdir_lib.write_json(study.workdir / fields.RESULTS, record)
  _clean(study, body)
  report = holistic_page.report(holistic_records.load(study.workdir))
  study.run.progress.close()
  publish.publish(report, study.workdir, study.run.progress.stream)
  if config.save_model:
    path, row = best.write(study, record)
    study.run.progress.stream.write(
      f"model folder: {path} ({row['title']}, seed {row['seed']}, with its gamma)\n"
    )
  return record


def _body(study: holistic_study.Study, trained: holistic_study.Trained) -> holistic_records.Body:
  gammas = {
    key: holistic_numbers.pcv_gamma(
      [epoch_files.read(study.epoch_path(row)) for _, row in splits], [p for p, _ in splits]
    )
    for key, splits in trained.pcv.items()
  }
  networks = [*_networks(study, trained, gammas)]
  for number, network in enumerate(networks):
    network["id"] = number
  per_block, main = table(networks, ("block",)), table(networks, ("pretrained", "main", "wise"))
  absent = {i: p.absent for i, p in enumerate(study.partitions.values())}
  test = study.target.test
  holistic_intervals.add([*main, *per_block], networks, absent, study.workdir, test.groups)
  return {
    "source": study.source.facts,
    "partitions": [
      {"id": i, "seed": seed, "how": how, "num_seen": number,
       "seen": np.flatnonzero(p.seen).tolist(), "absent": np.flatnonzero(p.absent).tolist()}
      for i, ((seed, how, number), p) in enumerate(study.partitions.items())
    ],
    "methods": [
      {"name": name, "title": holistic_config.title(name),
       "oracle": name == holistic_config.ORACLE,
       **{k: result[k] for k in ("learning_rate", "grid", "grid_edge")}}
      for name, result in (trained.methods | trained.blocks).items()
    ],
    "networks": networks,
    "pcv": [
      {"method": name, "seed": seed, "gamma": gammas[name, seed], "splits": [
        {"key": row["key"], "file": _relative(study, study.epoch_path(row)),
         "pseudo_absent": np.flatnonzero(p.pseudo_absent).tolist()}
        for p, row in splits
      ]}
      for (name, seed), splits in trained.pcv.items()
    ],
    "table": main,
    "blocks": [
      row | {"unit": unit.name, "blocks": list(unit.blocks)}
      for unit in holistic_config.units(study.config, study.source.engine.model.block_names)
      for row in per_block
      if row["method"] == holistic_config.unit_name(unit.name)
    ],
  }  # fmt: skip


def _relative(study: holistic_study.Study, path: Any) -> str:
  return str(path.relative_to(study.workdir))


def _networks(
  study: holistic_study.Study, trained: holistic_study.Trained, gammas: Mapping[Any, float]
) -> Iterator[holistic_records.Network]:
  """Every network that the record has numbers of."""
  own = study.config.holistic
  before = holistic_study.source_arrays(study)
  for seed in study.config.seeds:
    yield _pretrained(study, before, seed)
  for name, result in trained.methods.items():
    for seed, row in result["rows"].items():
      made = _training(study, "main", row, study.main(seed), before, gammas.get((name, seed)))
      if name == "ft" and trained.sizes:
        made |= _on_common(study, row, seed)
      yield made | _place(study, seed, own.how, own.num_seen[0])
  if holistic_config.WISE_FT in study.config.methods:
    for seed, row in trained.methods["ft"]["rows"].items():
      for alpha in own.wise_alphas:
        yield _wise(study, row, seed, float(alpha), before)
  for result in trained.blocks.values():
    for seed, row in result["rows"].items():
      made = _training(study, "block", row, study.main(seed), before)
      yield made | _place(study, seed, own.how, own.num_seen[0])
  for (seed, how, number), row in trained.sizes.items():
    made = _training(study, "size", row, study.partitions[seed, how, number], before)
    if made["epochs"]:
      made |= _on_common(study, row, seed)
    yield made | _place(study, seed, how, number)
  for row in trained.sweep:
    seed = study.config.seeds[0]
    made = _training(study, "sweep", row, study.main(seed), before)
    yield made | _place(study, seed, own.how, own.num_seen[0])


def _place(study: holistic_study.Study, seed: int, how: str, number: int) -> Row:
  return {"partition": list(study.partitions).index((seed, how, number))}


def _common(study: holistic_study.Study, seed: int) -> np.ndarray:
  """[C] bool: the classes that are absent at every size of this seed, or none."""
  own = [p.absent for (s, _, _), p in study.partitions.items() if s == seed]
  return np.logical_and.reduce(own)


def _on_common(study: holistic_study.Study, row: Row, seed: int) -> Row:
  """{"common"}, where the sizes share an absent class that the test has."""
  common = _common(study, seed)
  if not common[study.target.test.labels].any():
    return {}
  arrays = epoch_files.read(study.epoch_path(row))
  return {"common": holistic_numbers.on_classes(arrays, common)}


def _pretrained(study: holistic_study.Study, arrays: Mapping[str, np.ndarray], seed: int) -> Row:
  own = study.config.holistic
  name, absent = holistic_config.PRETRAINED, study.main(seed).absent
  epoch = {"stage": None, "epoch": 0, "file": _relative(study, holistic_study.source_path(study))}
  return {
    "use": "pretrained", "method": name, "title": holistic_config.title(name), "seed": seed,
    "key": None, "learning_rate": None, "validation_accuracy": None, "trained_params": 0,
    "seconds": 0.0, "epochs": [epoch | holistic_numbers.numbers(arrays, absent)],
    **_place(study, seed, own.how, own.num_seen[0]),
  }  # fmt: skip


def _training(
  study: holistic_study.Study,
  use: str,
  row: Row,
  partition: class_splits.Partition,
  before: Mapping[str, np.ndarray],
  pcv: float | None = None,
) -> Row:
  """A training's entry; without epochs where it diverged."""
  name = row["method"].partition(holistic_study.TAG)[0]
  every = name in study.config.holistic.along and holistic_study.TAG not in row["method"]
  history = row["history"] if every else row["history"][-1:]
  epochs, arrays = [], None
  for past in history:
    path = study.epoch_path(row, past)
    arrays = epoch_files.read(path)
    found = holistic_numbers.numbers(arrays, partition.absent, pcv=pcv)
    place = {"stage": past["stage"], "epoch": past["epoch"], "file": _relative(study, path)}
    epochs.append(place | found)
  made = {
    "use": use, "method": name, "title": holistic_config.title(name), "seed": row["seed"],
    "key": row["key"], "learning_rate": row["learning_rate"],
    "validation_accuracy": row["validation_accuracy"], "seconds": row["seconds"],
    "trained_params": max((s["trained_params"] for s in row["stages"]), default=0),
    "epochs": epochs,
  }  # fmt: skip
  if arrays is not None:
    made["directions"] = holistic_numbers.directions(before, arrays, partition.absent)
  return made


def _wise(
  study: holistic_study.Study, row: Row, seed: int, alpha: float, before: Mapping[str, np.ndarray]
) -> Row:
  """The source model and a fine-tuned one, interpolated."""
  own = study.config.holistic
  path = study.workdir / epoch_files.FOLDER / row["key"] / f"wise-{alpha:g}.npz"
  if not path.exists():
    start = study.source.pretrained.variables
    end, _ = export.load_task(study.workdir / "tasks" / row["key"], start)
    between = interpolation.interpolate(start, end, alpha)
    files.write_npz(path, holistic_study.read_target(study, between))
  arrays, absent = epoch_files.read(path), study.main(seed).absent
  epoch = {"stage": None, "epoch": None, "file": _relative(study, path)}
  return {
    "use": "wise", "method": holistic_config.WISE_FT, "alpha": alpha, "seed": seed,
    "title": f"{holistic_config.title(holistic_config.WISE_FT)}, {alpha:g}", "key": row["key"],
    "learning_rate": row["learning_rate"], "validation_accuracy": None, "seconds": row["seconds"],
    "trained_params": max(s["trained_params"] for s in row["stages"]),
    "epochs": [epoch | holistic_numbers.numbers(arrays, absent)],
    "directions": holistic_numbers.directions(before, arrays, absent),
    **_place(study, seed, own.how, own.num_seen[0]),
  }  # fmt: skip


def table(
  networks: Sequence[holistic_records.Network], uses: Sequence[str]
) -> list[holistic_records.TableRow]:
  """A row per network over its seeds and calibration."""
  groups: dict[tuple[str, str], list[Row]] = {}
  for network in networks:
    if network["use"] in uses:
      groups.setdefault((network["method"], network["title"]), []).append(network["epochs"][-1])
  rows = []
  for (method, title), epochs in groups.items():
    shared = holistic_numbers.summarize([
      {k: v for k, v in epoch.items() if k not in ("stage", "epoch", "file")} for epoch in epochs
    ])  # fmt: skip
    for kind in holistic_numbers.CALIBRATIONS:
      if kind in shared["accuracy"]:
        rows.append({
          "method": method, "title": title, "calibration": kind,
          "oracle": method == holistic_config.ORACLE or kind in holistic_numbers.ORACLES,
          "numbers": shared | {
            "gamma": shared["gamma"][kind], "accuracy": shared["accuracy"][kind]
          },
        })  # fmt: skip
  return rows


def _clean(study: holistic_study.Study, body: holistic_records.Body) -> None:
  """Removes the weights and arrays of trainings that the record does not name."""
  named = {n["key"] for n in body["networks"]} | {
    s["key"] for p in body["pcv"] for s in p["splits"]
  }
  weights = {n["key"] for n in body["networks"] if n["use"] == "main"}
  for folder, keep in ((epoch_files.FOLDER, named), ("tasks", weights)):
    for path in sorted((study.workdir / folder).iterdir()):
      if path.is_dir() and path.name not in keep:
        shutil.rmtree(path)
