"""The source model of a study of holistic transfer: a network that knows all classes."""

import dataclasses
import pathlib
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import data, weights
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
    ValueError: the source has other classes than the target, or as of `compare.run`.
  """
  if config.backbone.keep_head or config.source.class_embeddings:
    engine, pretrained, facts = _loaded(config, class_names)
  else:
    engine, pretrained, facts = _trained(config, workdir, class_names, stream)
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


def _trained(config: Any, workdir: pathlib.Path, class_names: tuple[str, ...], stream: TextIO):
  """(engine, weights, facts) of a network trained on the source domain, all classes."""
  own = holistic_config.source_config(config)
  state = compare.start(own, workdir / SOURCE, stream)
  if state.train.class_names != class_names:
    raise ValueError(
      f"source.data is {config.source.data!r} with the classes {state.train.class_names[:3]}... "
      f"({len(state.train.class_names)}), and data.train {config.data.train!r} has "
      f"{class_names[:3]}... ({len(class_names)}); give two domains of one set of classes"
    )
  chosen = compare.train_all(state)[config.source.method]
  row = chosen["chosen"][0]
  variables, _ = export.load_task(
    workdir / SOURCE / "tasks" / row["key"], state.pretrained.variables
  )
  state.progress.close()
  test = data.load(
    own.data.train, "test", own.data.image_size, interpolation=own.data.interpolation
  )
  facts = {
    "data": config.source.data, "method": config.source.method,
    "weights": config.backbone.weights, "learning_rate": chosen["learning_rate"],
    "grid": chosen["grid"], "validation_accuracy": row["validation_accuracy"],
    "test_accuracy": evaluate.accuracy(state.engine.predict(variables, test.images), test.labels),
    "seconds": row["seconds"],
  }  # fmt: skip
  return state.engine, state.pretrained._replace(variables=variables), facts


def _with_classes(engine: loop.Engine, variables: Any, columns: np.ndarray):
  """The network with a head of these classes alone."""
  if len(columns) == engine.model.num_classes:
    return engine, variables
  head = jax.tree.map(lambda w: jnp.asarray(w)[..., columns], variables["params"]["head"])
  variables = {**variables, "params": {**variables["params"], "head": head}}
  model = engine.model.clone(num_classes=len(columns))
  return dataclasses.replace(engine, model=model), variables
