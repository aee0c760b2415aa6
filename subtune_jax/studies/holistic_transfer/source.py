"""The source model of a study of holistic transfer: a network that knows all classes."""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import weights
from subtune_jax.data import classes
from subtune_jax.runner import network
from subtune_jax.studies.compare import run as compare
from subtune_jax.studies.holistic_transfer import config as holistic_config
from subtune_jax.training import checkpoint, evaluate, export, loop, resume
from subtune_jax.weights import zero_shot

Row = dict[str, Any]
SOURCE = "source"  # folder of its training
FILE = "source.msgpack"  # the whole network


@dataclasses.dataclass(frozen=True)
class Source:
  """A network and what a record says of it.

  Attributes:
    engine: the model, with a head of the target's classes.
    pretrained: its variables.
    facts: how it was made.
  """

  engine: loop.Engine
  pretrained: weights.Pretrained
  facts: Row


def make(
  config: Any,
  workdir: pathlib.Path,
  class_names: tuple[str, ...],
  columns: np.ndarray,
  stream: TextIO,
) -> Source:
  """Loads the source model, or trains it in WORKDIR/source; its file is WORKDIR/source.msgpack.

  Args:
    config: of the study.
    workdir: of the study.
    class_names: of the target's data set, those that do not occur in it too.
    columns: those that occur: what the head keeps.
    stream: where progress goes.

  Raises:
    ValueError: the source lacks a class of the target, or as of `compare.run`.
  """
  if config.backbone.keep_head or config.source.class_embeddings:
    engine, pretrained, facts = _loaded(config, class_names)
  else:
    wanted = [class_names[c] for c in columns]
    engine, pretrained, facts, columns = _trained(config, workdir, wanted, stream)
  engine, variables = _with_classes(engine, pretrained.variables, columns)
  sha256 = checkpoint.digest(resume.named_leaves(dict(variables), SOURCE))
  path = workdir / FILE
  if not path.exists():
    export.save_variables(path, variables)
  pretrained = pretrained._replace(
    variables=variables, name=str(path), sha256=sha256, not_loaded=()
  )
  return Source(engine, pretrained, facts | {"sha256": sha256, "file": FILE})


def _loaded(config: Any, class_names: tuple[str, ...]):
  """(engine, weights, facts) of a network whose head knows the classes."""
  embeddings = config.source.class_embeddings
  own = config
  if embeddings:  # the weights have no head: it is made
    own = config.copy_and_resolve_references()
    own.backbone.keep_head = False
  engine, pretrained = network.load_network(own, len(class_names))
  facts = {"data": "", "method": "loaded", "weights": config.backbone.weights}
  if embeddings:
    model = engine.model
    if not hasattr(model, "normalize_features"):
      raise ValueError(
        f"source.class_embeddings is given, and {config.backbone.name} is no CLIP image tower; "
        "take one of them"
      )
    engine = dataclasses.replace(engine, model=model.clone(normalize_features=True))
    rows = zero_shot.read_class_embeddings(embeddings)
    variables = zero_shot.set_head(engine.model, pretrained.variables, rows, class_names)
    pretrained = pretrained._replace(variables=variables)
    facts |= {"method": "zero-shot", "class_embeddings": embeddings}
  return engine, pretrained, facts


def _trained(config: Any, workdir: pathlib.Path, wanted: Sequence[str], stream: TextIO):
  """(engine, weights, facts, columns) of a network trained on the source domain, all classes.

  The columns are those of the classes `wanted` in its head, matched by name.
  """
  own = holistic_config.source_config(config)
  state = compare.start(own, workdir / SOURCE, stream)
  columns = classes.positions(
    config.data.train, wanted, f"source.data, {config.source.data},", state.train.class_names,
    "give two domains that call their classes alike",
  )  # fmt: skip
  chosen = compare.train_all(state)[config.source.method]
  row = chosen["chosen"][0]
  variables, _ = export.load_task(
    workdir / SOURCE / "tasks" / row["key"], state.pretrained.variables
  )
  state.progress.close()
  (test,) = state.tests
  facts = {
    "data": config.source.data, "method": config.source.method,
    "weights": config.backbone.weights, "learning_rate": chosen["learning_rate"],
    "grid": chosen["grid"], "validation_accuracy": row["validation_accuracy"],
    "test_accuracy": evaluate.accuracy(state.engine.predict(variables, test.images), test.labels),
    "seconds": row["seconds"],
  }  # fmt: skip
  return state.engine, state.pretrained._replace(variables=variables), facts, np.array(columns)


def _with_classes(engine: loop.Engine, variables: Any, columns: np.ndarray):
  """The network with a head of these classes alone."""
  if np.array_equal(columns, np.arange(engine.model.num_classes)):
    return engine, variables
  head = jax.tree.map(lambda w: jnp.asarray(w)[..., columns], variables["params"]["head"])
  variables = {**variables, "params": {**variables["params"], "head": head}}
  model = engine.model.clone(num_classes=len(columns))
  return dataclasses.replace(engine, model=model), variables
