"""What a study of holistic transfer trains, and what it stores of it; see `holistic`."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any, TextIO

import numpy as np

from subtune_jax import files
from subtune_jax.calibration import class_splits
from subtune_jax.report import terminal
from subtune_jax.runner import choice, trainings, writers
from subtune_jax.runner import progress as progress_lib
from subtune_jax.runner import workdir as workdir_lib
from subtune_jax.studies import data_table, epoch_files
from subtune_jax.studies.holistic_transfer import config as holistic_config
from subtune_jax.studies.holistic_transfer import source as holistic_source
from subtune_jax.studies.holistic_transfer import target as holistic_data
from subtune_jax.training import batches, evaluate, trainable_split
from subtune_jax.training import ledger as ledger_lib
from subtune_jax.training import prefix as prefix_lib

Row = dict[str, Any]
TAG = "@"  # "ft@pseudo 1": what comes behind it is for progress and the ledger


@dataclasses.dataclass
class Study:
  """What every part of the study needs."""

  config: Any
  run: trainings.Run  # without data: `train` fills it
  target: holistic_data.Target
  source: holistic_source.Source
  prefix: prefix_lib.Prefix
  partitions: dict[tuple[int, str, int], class_splits.Partition]  # seed, how, number of seen

  @property
  def workdir(self) -> pathlib.Path:
    """Where everything is written."""
    return self.run.workdir

  def main(self, seed: int) -> class_splits.Partition:
    """The classes of the study itself."""
    own = self.config.holistic
    return self.partitions[seed, own.how, own.num_seen[0]]

  def epoch_path(self, row: Row, epoch: Row | None = None) -> pathlib.Path:
    """Where a training is stored after an epoch of its history, by default the last."""
    return epoch_files.path(self.workdir, row["key"], epoch or row["history"][-1])


def start(config: Any, workdir: str | os.PathLike, stream: TextIO) -> Study:
  """Checks everything, enters the workdir and makes the source model. Errors: `holistic.run`."""
  holistic_config.check(config)
  target = holistic_data.load_target(config)
  partitions = draw_all(config, target.train.class_names)
  workdir, entered = workdir_lib.enter(workdir, config)
  source = holistic_source.make(config, workdir, target.all_names, target.columns, stream)
  own = config.copy_and_resolve_references()
  own.backbone.keep_head = True  # the source model's
  engine, blocks = source.engine, source.engine.model.block_names
  for name in _names(config, blocks):
    method = holistic_config.make_method(
      config, name, holistic_config.learning_rates(config, name)[0], blocks
    )
    trainable_split.make_plan(engine.model, source.pretrained.variables, method[0])
  ledger = ledger_lib.Ledger(workdir / "ledger.jsonl")
  rows = ledger.rows()
  progress = progress_lib.Progress(count_epochs(config, partitions, blocks), stream)
  progress.line(_first_line(config, target, source))
  sets = data_table.report((target.train, target.validation), (target.test,))
  progress.line(terminal.render(sets))
  writer = writers.MetricWriter(workdir, tensorboard=config.tensorboard)
  state = trainings.Run(
    own, workdir, target.train, target.validation, None, (), None, engine, source.pretrained,
    ledger, rows, writer, progress, make=_make,
  )  # fmt: skip
  if entered:
    progress.line(state.resuming())
  prefix = prefix_lib.Prefix(
    engine.model, source.pretrained.variables, target.train.images,
    preprocessing=engine.preprocessing, batch_size=config.batch_size, mesh=engine.mesh,
    memory_bytes=int(config.holistic.memory_gb * 1e9),
  )  # fmt: skip
  return Study(config, state, target, source, prefix, partitions)


def _first_line(config: Any, target: holistic_data.Target, source: holistic_source.Source) -> str:
  score = source.facts.get("test_accuracy")
  known = "" if score is None else f", {100 * score:.1f} % right there"
  return (
    f"{config.name}: source {config.source.data or config.backbone.weights}{known}; target "
    f"{config.data.train} at {config.data.image_size} px, {config.holistic.num_seen[0]} of "
    f"{len(target.train.class_names)} classes seen, {len(config.seeds)} seeds"
  )


def _make(config: Any, name: str, rate: float, block_names: Sequence[str]) -> Any:
  return holistic_config.make_method(config, name.partition(TAG)[0], rate, block_names)


def draw_all(
  config: Any, class_names: Sequence[str]
) -> dict[tuple[int, str, int], class_splits.Partition]:
  """(seed, how, number of seen classes) -> classes, those of the study first."""
  own = config.holistic
  wanted = [(own.how, own.num_seen[0])]
  if len(own.num_seen) > 1:
    wanted += [(how, number) for how in own.hows for number in own.num_seen]
  return {
    (seed, how, number): holistic_config.draw(config, class_names, number, seed, how)
    for how, number in dict.fromkeys(wanted)
    for seed in config.seeds
  }


def _names(config: Any, blocks: Sequence[str]) -> list[str]:
  """Every method that is trained."""
  names = [name for name in config.methods if name != holistic_config.WISE_FT]
  names += [holistic_config.unit_name(u.name) for u in holistic_config.units(config, blocks)]
  return names + [
    holistic_config.sweep_name(optimizer, decay)
    for optimizer in config.sweep.optimizers
    for decay in config.sweep.weight_decays
  ]


def count_epochs(config: Any, partitions: Mapping[Any, Any], blocks: Sequence[str]) -> int:
  """Epochs of all trainings but the source's."""
  own, seeds, total = config.holistic, len(config.seeds), 0
  tried = len(choice.grid_seeds(config))
  for name in _names(config, blocks):
    rates = len(holistic_config.learning_rates(config, name))
    epochs = config[holistic_config.section(name)].epochs
    trainings = rates * tried + seeds - tried
    if name.startswith("sweep"):
      trainings = rates
    elif name in own.pcv_methods:
      trainings += seeds * own.pcv_splits
    total += epochs * trainings
  return total + config.ft.epochs * (len(partitions) - seeds)


def read(
  study: Study, variables: Any, sets: Mapping[str, Any], *, features: bool
) -> dict[str, np.ndarray]:
  """ "SET/labels", "SET/logits" and, if asked for, "SET/features", from one forward pass."""
  engine, found = study.source.engine, {}
  options = engine.options()
  for name, examples in sets.items():
    seen = evaluate.run_units(
      engine.model, variables, examples.images, stop=trainable_split.HEAD, **options
    )
    logits = evaluate.predict(engine.model, variables, seen, start=trainable_split.HEAD, **options)
    found |= {f"{name}/logits": logits, f"{name}/labels": np.asarray(examples.labels)}
    if features:
      found[f"{name}/features"] = np.asarray(seen, np.float32)
  head = variables["params"]["head"]
  return found | {f"head/{name}": np.asarray(leaf, np.float32) for name, leaf in head.items()}


def read_target(study: Study, variables: Any, *, features: bool = True) -> dict[str, np.ndarray]:
  """What is stored of a network; see the module."""
  sets = {"test": study.target.test, "train": study.target.train}
  return read(study, variables, sets, features=features)


def train(
  study: Study, name: str, rate: float, seed: int, partition: class_splits.Partition
) -> Row:
  """One training on the seen classes of `partition` (on all, for the oracle)."""
  kind, _, tag = name.partition(TAG)
  config, target = study.config, study.target
  seen = np.ones_like(partition.seen) if kind == holistic_config.ORACLE else partition.seen
  columns = batches.NO_COLUMNS
  if kind == "distillation":
    columns = {"source_logits": _source_logits(study, partition)}

  def look(variables):
    if partition.pseudo_absent.any():
      return held_out(study, variables, partition)
    return read_target(study, variables, features=not kind.startswith("sweep"))

  every = kind in config.holistic.along and not tag
  last = config[holistic_config.section(kind)].epochs
  images = holistic_data.select(study.prefix, target.train, seen, columns)
  run_here = dataclasses.replace(
    study.run,
    config=_with_steps(study, images, partition),
    train=images,
    validation=holistic_data.subset(target.validation, seen),
    watch=epoch_files.watch(study.workdir, look, lambda epoch: every or epoch["epoch"] == last),
  )
  return trainings.train_once(run_here, trainings.Asked(name, rate, seed))


def _with_steps(study: Study, images: Any, partition: class_splits.Partition) -> Any:
  """The config, a fixed number of steps in proportion to the images of a pseudo split.

  As many steps on half of the images would part seen and absent logits further than the training
  does whose gamma is sought.
  """
  steps = study.run.config.optimizer.steps_per_epoch
  if not steps or not partition.pseudo_absent.any():
    return study.run.config
  whole = int((~partition.absent)[study.target.train.labels].sum())
  config = study.run.config.copy_and_resolve_references()
  config.optimizer.steps_per_epoch = max(1, round(steps * len(images.labels) / whole))
  return config


def _source_logits(study: Study, partition: class_splits.Partition) -> np.ndarray:
  """[N, C] of the source model on the training images; -inf for the classes that are seen."""
  arrays = source_arrays(study)
  return np.where(partition.seen[None], np.float32(-np.inf), arrays["train/logits"])


def source_path(study: Study) -> pathlib.Path:
  """Where the source model's arrays are."""
  return study.workdir / epoch_files.FOLDER / "source.npz"


def source_arrays(study: Study) -> dict[str, np.ndarray]:
  """What is stored of the source model."""
  path = source_path(study)
  if not path.exists():
    files.write_npz(path, read_target(study, study.source.pretrained.variables))
  return epoch_files.read(path)


def held_out(
  study: Study, variables: Any, partition: class_splits.Partition
) -> dict[str, np.ndarray]:
  """Logits for PCV: validation images of seen and pseudo-absent classes, and the training images of
  pseudo-absent ones, which this training did not see. No image of an absent class."""
  target = study.target
  sets = {
    "validation": holistic_data.subset(target.validation, ~partition.absent),
    "train": holistic_data.subset(target.train, partition.pseudo_absent),
  }
  found = read(study, variables, sets, features=False)
  return {
    f"held_out/{what}": np.concatenate([found[f"{name}/{what}"] for name in sets])
    for what in ("logits", "labels")
  }


@dataclasses.dataclass
class Trained:
  """Every finished training of the study.

  Attributes:
    methods: name -> {"learning_rate", "grid", "grid_edge", "rows": {seed: row}}: main methods.
    blocks: likewise, of SubTuning of each unit.
    pcv: (method, seed) -> [(pseudo partition, row)].
    sizes: (seed, how, number) -> row, of ft.
    sweep: rows on the first seed; those that diverged have no history.
  """

  methods: dict[str, Row]
  blocks: dict[str, Row]
  pcv: dict[tuple[str, int], list[tuple[class_splits.Partition, Row]]]
  sizes: dict[tuple[int, str, int], Row]
  sweep: list[Row]


def train_all(study: Study) -> Trained:
  """Every training of the study, each from the ledger where it is finished."""
  config, blocks = study.config, study.source.engine.model.block_names
  source_arrays(study)
  methods = {
    name: choose(study, name) for name in config.methods if name != holistic_config.WISE_FT
  }
  pcv = {
    (name, seed): pseudo_trainings(study, name, methods[name]["learning_rate"], seed)
    for name in config.holistic.pcv_methods
    for seed in config.seeds
  }
  units = [holistic_config.unit_name(u.name) for u in holistic_config.units(config, blocks)]
  per_block = {name: choose(study, name) for name in units}
  rate = methods["ft"]["learning_rate"]
  own, sizes = config.holistic, {}
  for (seed, how, number), partition in study.partitions.items():
    if (how, number) != (own.how, own.num_seen[0]):
      name = f"ft{TAG}{number} classes, {how}"
      sizes[seed, how, number] = train(study, name, rate, seed, partition)
  trained = Trained(methods, per_block, pcv, sizes, _sweep(study))
  study.run.writer.close()
  return trained


def choose(study: Study, name: str) -> Row:
  """Every learning rate on the seeds that try them, the best one by validation on all seeds.

  A rate that diverges on a seed is no choice; the next best takes its place.
  """
  config = study.config
  rates, seeds = holistic_config.learning_rates(config, name), tuple(config.seeds)
  tried = choice.grid_seeds(config)
  found = {
    rate: {seed: train(study, name, rate, seed, study.main(seed)) for seed in tried}
    for rate in rates
  }
  grid = [choice.grid_row(list(rows.values())) for rows in found.values()]
  for rate in choice.best_first(grid):
    rows = found[rate]
    for seed in seeds[len(tried) :]:
      rows[seed] = train(study, name, rate, seed, study.main(seed))
    bad = [seed for seed, row in rows.items() if not row["history"]]
    if not bad:
      edge = choice.at_edge(grid, rate)
      return {"learning_rate": rate, "grid": grid, "grid_edge": edge, "rows": rows}
    study.run.progress.line(f"{name}: learning rate {rate:g} diverged with seed {bad[0]}")
  raise ValueError(f"{name}: every learning rate of {rates} diverged on a seed; lower them")


def pseudo_trainings(
  study: Study, name: str, rate: float, seed: int
) -> list[tuple[class_splits.Partition, Row]]:
  """The trainings of PCV: on some of the seen classes, the absent ones out of sight."""
  own, partition = study.config.holistic, study.main(seed)
  groups = None
  if own.how == "group":
    groups = holistic_config.class_groups(study.config, study.target.train.class_names)
  found = []
  pseudo = class_splits.pseudo_partitions(partition, own.pcv_splits, seed, groups)
  for number, split in enumerate(pseudo, start=1):
    row = train(study, f"{name}{TAG}pseudo split {number}", rate, seed, split)
    if not row["history"]:
      raise ValueError(
        f"{name}: learning rate {rate} diverged on pseudo split {number} of seed {seed}; lower it"
      )
    found.append((split, row))
  return found


def _sweep(study: Study) -> list[Row]:
  """Fine-tuning on the first seed with every optimiser, rate and weight decay."""
  config, rows = study.config, []
  seed = config.seeds[0]
  for optimizer in config.sweep.optimizers:
    for decay in config.sweep.weight_decays:
      name = holistic_config.sweep_name(optimizer, decay)
      for rate in holistic_config.learning_rates(config, name):
        rows.append(train(study, name, rate, seed, study.main(seed)))
  return rows
