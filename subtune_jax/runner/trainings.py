"""One training of a run: from the ledger, from its checkpoint, or from the pretrained weights."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib
from typing import Any

from absl import logging
import numpy as np

from subtune_jax import data, files, methods, processes, weights
from subtune_jax.models import backbone, heads
from subtune_jax.report import explosion, words
from subtune_jax.runner import examples, network, recipes, writers
from subtune_jax.runner import progress as progress_lib
from subtune_jax.runner import workdir as workdir_lib
from subtune_jax.statistics import criteria
from subtune_jax.training import checkpoint, evaluate, export, loop, resume, stage_runner
from subtune_jax.training import ledger as ledger_lib
from subtune_jax.training import trace as trace_lib

Row = dict[str, Any]
# watch(key) -> what `fit` calls after every epoch of the training of that key.
Watch = Callable[[str], loop.OnVariables]
# make(config, method, learning rate, block names) -> stages.
Make = Callable[[Any, str, float, Any], methods.Method]

# epoch_cost(method, stage) -> what an epoch takes beside those of the others.
EpochCost = Callable[[str, int], float]


@dataclasses.dataclass
class Run:
  """What every part of the run needs."""

  config: Any
  workdir: pathlib.Path
  train: data.Dataset
  validation: data.Dataset
  trainval: data.Dataset | None  # where methods are trained again after the choices
  tests: tuple[data.Dataset, ...]  # in the head's classes; read after the choices
  train_indices: np.ndarray | None  # of the training split, where only some of it is used
  engine: loop.Engine
  pretrained: weights.Pretrained
  ledger: ledger_lib.Ledger
  rows: dict[str, Row]
  writer: writers.MetricWriter = None  # type: ignore[assignment]  # until the workdir is entered
  progress: progress_lib.Progress = None  # type: ignore[assignment]  # likewise
  watch: Watch | None = None
  make: Make = recipes.make_method
  epoch_cost: EpochCost = lambda name, stage: 1.0
  changeable: bool = False  # whether other methods, rates and seeds may follow in the workdir

  def network_of(self, name: str) -> tuple[loop.Engine, weights.Pretrained]:
    """The network that a method trains: the run's, or what the method makes of it."""
    return network.prepared(name, self.config, self.engine, self.pretrained)

  @functools.cached_property
  def network(self) -> str:
    """Digest of the variables that trainings start from; of the head only where it is kept."""
    variables, head = self.pretrained.variables, self.config.backbone.keep_head
    return export.backbone_digest(variables, head=head)

  @functools.cached_property
  def inputs(self) -> str:
    """Digest of the images and variables, which a workdir's config names but does not hold."""
    sets = (self.train, self.validation, self.trainval)
    return ledger_lib.key_of({"data": [s and s.fingerprint() for s in sets], "of": self.network})

  @functools.cached_property
  def trace(self) -> trace_lib.Trace | None:
    """Of the first training that this start runs, where the config asks for one."""
    return trace_lib.asked(self.config, self.workdir, self.progress.line)

  def resuming(self) -> str:
    """What an earlier start has left of this run."""
    of_these = [row.get("inputs", self.inputs) == self.inputs for row in self.rows.values()]
    known, others = sum(of_these), len(of_these) - sum(of_these)
    text = f"{words.count(known, 'training')} {words.verb(known)} finished and will not be repeated"
    if others:
      text += f"; {others} more in the ledger {words.verb(others)} of other images or weights"
    return f"resuming: {text}"


@dataclasses.dataclass(frozen=True)
class Asked:
  """A training that a plan asks for.

  Attributes:
    name: of the method.
    rate: its learning rate.
    seed: of the head, the order and the views.
    strengths: settings of its probes (`LBFGS.fixed`), one for each stage; with them it is trained
      on `Run.trainval`.
  """

  name: str
  rate: float
  seed: int
  strengths: tuple[Any, ...] | None = None


def described(run: Run, asked: Asked) -> tuple[methods.Method, tuple[Any, Any], str]:
  """Stages, (training set, validation set) and a few words."""
  method = stages_of(run, asked.name, asked.rate)
  what = f"{asked.name} lr={asked.rate:g} seed={asked.seed}" if asked.rate else asked.name
  if not asked.strengths:
    return method, (run.train, run.validation), what
  return _fixed(method, asked.strengths), (run.trainval, None), f"{what} on all labels"


def train_once(run: Run, asked: Asked) -> Row:
  """One training: from the ledger, from its checkpoint, or from the pretrained weights."""
  method, sets, what = described(run, asked)
  return _train_method_on(run, asked.name, asked.rate, asked.seed, method, sets, what)


def train_with_probe_steps(run: Run, result: Row, steps: int) -> Row:
  """LP-FT at its chosen rate and strength on the first seed, from a probe of so many steps."""
  first = result["chosen"][0]
  probe, *rest = _fixed(
    stages_of(run, result["name"], result["learning_rate"]), [s.get("l2") for s in first["stages"]]
  )
  assert isinstance(probe.solver, methods.LBFGS)
  solver = dataclasses.replace(probe.solver, max_steps=steps)
  method = (dataclasses.replace(probe, solver=solver), *rest)
  what = f"{result['name']} lr={result['learning_rate']:g} from {steps} steps of the probe"
  return _train_method_on(
    run, result["name"], result["learning_rate"], first["seed"], method,
    (run.train, run.validation), what,
  )  # fmt: skip


def on_all_labels(best: Row, seed: int) -> Asked:
  """The training of a chosen setting on all labelled images."""
  strengths = tuple(stage.get("setting", stage.get("l2")) for stage in best["stages"])
  return Asked(best["method"], best["learning_rate"], seed, strengths)


def with_scores(run: Run, row: Row, best: Row) -> Row:
  """A training on all labelled images, with the score that its setting was chosen by."""
  scores = criteria.fields(criteria.of(run.config)) if row["history"] else ()
  return row | {name: best[name] for name in scores} | {"selection": best["stages"]}


def stages_of(run: Run, name: str, rate: float) -> methods.Method:
  made = run.make(run.config, name, rate, run.network_of(name)[0].model.block_names)
  return recipes.balanced(run.config, made, run.train.class_names)


def num_epochs(method: methods.Method) -> int:
  return sum(getattr(stage.solver, "epochs", 1) for stage in method)


def _fixed(method: methods.Method, settings: Sequence[Any]) -> methods.Method:
  """The method with each probe's setting fixed."""
  return tuple(
    stage if setting is None or not isinstance(stage.solver, methods.LBFGS)
    else dataclasses.replace(stage, solver=stage.solver.fixed(setting))
    for stage, setting in zip(method, settings, strict=True)
  )  # fmt: skip


def describe(
  run: Run, name: str, method: methods.Method, seed: int, train: Any, validation: Any
) -> Row:
  """Everything that the result of a training depends on."""
  config = run.config
  used = {"data", "backbone", "augment", "batch_size"}
  described = {k: v for k, v in workdir_lib.as_json(config).items() if k in used}
  described["data"].pop("label_map", None)  # of test sets
  described["backbone"].pop("remat", None)  # no result depends on it
  changed = network.method_options(name, config)
  sections = {**described, name: changed}
  for field, default in workdir_lib.optional_fields().items():
    section, _, own = field.partition(".")
    if section in sections and own in sections[section] and sections[section][own] == default:
      del sections[section][own]
  criterion = criteria.of(config)
  chosen = {} if criterion.name == criteria.ACCURACY else {"select_by": criterion.name}
  options = {"options": ledger_lib.plain(changed)} if changed else {}
  return {
    **chosen,
    **options,
    "config": described,
    "train": train.fingerprint(),
    "validation": validation.fingerprint() if validation else None,
    "weights": run.pretrained.sha256,
    "variables": run.network,
    "preprocessing": ledger_lib.plain(run.engine.preprocessing),
    "head": "kept" if config.backbone.keep_head else heads.DRAW,
    "method": name,
    "stages": [ledger_lib.plain(stage) for stage in method],
    "seed": seed,
  }


def fields_in_keys() -> tuple[str, ...]:
  """Fields of a config that say which trainings there are: a key holds its part of each."""
  return ("methods", "seeds", *(f"{name}.learning_rates" for name in recipes.offered()))


def _train_method_on(
  run: Run, name: str, rate: float, seed: int, method: methods.Method, sets: Any, what: str
) -> Row:
  """One training of a method whose stages are fixed; `sets` are training and validation set."""
  key = ledger_lib.key_of(describe(run, name, method, seed, *sets))
  if key in run.rows:
    run.progress.skip(num_epochs(method))
    return run.rows[key]
  checkpoints = checkpoint.Checkpoints(run.workdir / "checkpoints" / key)
  saver = resume.Saver(
    checkpoints, key, every_seconds=run.config.checkpoint_seconds,
    last_good=run.config.resume == "last_good",
  )  # fmt: skip
  row: Row = {"key": key, "method": name, "learning_rate": rate, "seed": seed,
              "inputs": run.inputs}  # fmt: skip
  with processes.postponing():
    row |= _fit(run, name, method, seed, saver, what, key, *sets)
    row = processes.agreed(row)
    run.ledger.append(row)
    run.rows[key] = row
    checkpoints.clear()
  outcome = "done" if row["history"] else "diverged"
  if row["validation_accuracy"] is not None:
    outcome = f"validation {row['validation_accuracy']:.3f}"
    criterion = criteria.of(run.config)
    if criterion.name != criteria.ACCURACY:
      outcome += f", {criterion.title} {row[criterion.field]:.3f}"
  exploded = explosion.explosion(row["history"], row["moved"], run.engine.model.num_classes)
  outcome += f" (exploded: {exploded})" if exploded else ""
  waits = [epoch["data_wait"] for epoch in row["history"] if "data_wait" in epoch]
  waited = f", {100 * np.mean(waits):.0f} % of the steps' time waiting for data" if waits else ""
  took = f"{row['seconds']:.1f} s + {row['compile_seconds']:.1f} s compiling{waited}"
  run.progress.line(", ".join(filter(None, [f"{what}: {outcome}", took, run.progress.left()])))
  return row


def _fit(run: Run, name, method, seed, saver, what, key, train, validation) -> Row:
  """The figures of one training; its tuned leaves go to WORKDIR/tasks/<key>."""
  engine, pretrained = run.network_of(name)
  variables = pretrained.variables
  if not run.config.backbone.keep_head:
    variables = heads.init_head(engine.model, variables, seed, pretrained.sha256)
  steps = iter(range(1, 1 << 30))
  criterion = criteria.of(run.config)

  def on_epoch(row, logits):
    path = run.workdir / f"logits/validation/{key}/{row['stage']}-{row['epoch']}.npz"
    if logits is not None:
      files.write_npz(path, {"logits": np.asarray(logits, np.float32)})
    run.writer.write(next(steps), what.replace(" ", "/"), row)
    cost = run.epoch_cost(name, row["stage"]) * len(train.labels) / len(run.train.labels)
    run.progress.epoch(what, row, cost)

  try:
    result = loop.fit(
      engine, variables, method, train, validation, seed=seed, on_epoch=on_epoch,
      saver=saver, on_resume=lambda text: run.progress.line(f"{what}: {text}"),
      on_variables=run.watch(key) if run.watch else None, select_by=criterion.name,
      trace=run.trace,
    )  # fmt: skip
  except stage_runner.NonFiniteLossError as e:
    logging.warning("%s: %s", what, e)
    run.progress.line(f"{what}: {e}")
    none = dict.fromkeys(criteria.fields(criterion))
    return none | {"history": [], "stages": [], "seconds": 0.0, "compile_seconds": 0.0,
                   "moved": None}  # fmt: skip
  note = {"backbone": run.config.backbone.weights, "class_names": list(run.train.class_names)}
  if backbone.fork_of(engine.model) is not None:
    note["beside_frozen"] = list(engine.model.tuned)
  export.save_task(
    run.workdir / "tasks" / key, result.variables, result.touched, pretrained.variables, note
  )
  last = result.history[-1]
  return {
    **{name: last.get(name) for name in criteria.fields(criterion)},
    "history": result.history, "stages": result.stages, "seconds": round(result.seconds, 3),
    "compile_seconds": round(result.compile_seconds, 3), "moved": result.moved,
  }  # fmt: skip


def test_once(run: Run, name: str, row: Row) -> Row:
  """Logits of a chosen training of a method on every test set, written and scored."""
  engine, pretrained = run.network_of(name)
  variables, _ = export.load_task(run.workdir / "tasks" / row["key"], pretrained.variables)
  scores: Row = {}
  for test in run.tests:
    try:
      logits = engine.predict(variables, test.images)
    except stage_runner.NonFiniteLossError as e:
      raise stage_runner.NonFiniteLossError(
        f"{name}, learning rate {row['learning_rate']:g}, seed {row['seed']}, on {test.name}: {e}"
      ) from e
    logits = examples.masked(run.config, test, logits)
    path = f"logits/{name}-seed{row['seed']}-{test.name.replace('/', '-')}.npz"
    arrays = {"labels": test.labels, "groups": test.groups, "ids": test.ids}
    files.write_npz(run.workdir / path, {"logits": logits, **arrays})
    scores[test.name] = {
      "accuracy": evaluate.accuracy(logits, test.labels),
      "loss": evaluate.cross_entropy(logits, test.labels),
      "logits": path,
    }
  return scores
