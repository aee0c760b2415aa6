"""Pretrained weights by name or by path, merged into a model's variables."""

from collections.abc import Mapping
from concurrent import futures
import functools
import hashlib
import mmap
import pathlib
from typing import Any, NamedTuple

from absl import logging
from flax import linen as nn
import jax
import jax.numpy as jnp

from subtune_jax.data import preprocess
from subtune_jax.models import backbone, heads, vit
from subtune_jax.weights import errors, files, hub, known, matching, sidecar, stated
from subtune_jax.weights.naming import positions


class Pretrained(NamedTuple):
  """Variables of a model that starts from a file of weights.

  Attributes:
    variables: {"params": ..., "batch_stats": ...}, float32.
    preprocessing: what the weights were trained to see.
    name: as it was asked for.
    sha256: of the file.
    not_loaded: '/'-paths into params that were initialised instead: the head, when the file has
      none or one of another number of classes.
    not_checked: hyper-parameters that shapes do not tell and that no `config.json` beside the
      weights states, and its fields that are not known; one text for each reason.
    revision: commit of the repository on the hub that they are of; "" of any other weights.
    resized: rows of patches of the position embeddings in the file and in the model, where these
      are others.
  """

  variables: Mapping[str, Any]
  preprocessing: preprocess.Preprocessing
  name: str
  sha256: str
  not_loaded: tuple[str, ...]
  not_checked: tuple[str, ...] = ()
  revision: str = ""
  resized: tuple[int, int] | None = None


def load_pretrained(
  name_or_path: str | pathlib.Path,
  model: nn.Module,
  *,
  preprocessing: preprocess.Preprocessing | str | None = None,
  seed: int = 0,
) -> Pretrained:
  """Initialises a model from a file of pretrained weights.

  The file's format and its naming scheme are told by its content. Every tensor of the file is used,
  or belongs to a group that the scheme drops whole (batch counters, a momentum encoder, a text
  tower); every variable of the model is in the file, but for the head, which is initialised (kernel
  lecun_normal, bias zero) and listed when the file has none or one of another number of classes.

  What a `config.json` of transformers or timm beside the weights states must be true of the model;
  what cannot be checked is in `not_checked` and logged. Files of known names have no such file.

  Args:
    name_or_path: one of `names()`, the path of a file or of an Orbax checkpoint, or
      "hf_hub:OWNER/NAME" or "hf_hub:OWNER/NAME@REVISION" (`weights.hub`; may download).
    model: from `models.create`.
    preprocessing: what the weights were trained to see: a `Preprocessing` or a key of
      `preprocess.PRESETS`. None takes what is known of the name, of a hub's JSON file beside the
      weights, or of the naming scheme, in this order.
    seed: of the head's initialisation.

  Raises:
    WeightsError: an unknown name, a file that is missing (with the command that gets it), damaged,
      or has an unexpected hash, tensors or a `config.json` that do not fit the model (one message
      with both sides), or a file that does not say its preprocessing.
  """
  revision = ""
  if hub.is_name(str(name_or_path)):
    (path, revision), entry = hub.fetch(str(name_or_path)), None
  else:
    path, entry = known.find(str(name_or_path))
  content = None if path.is_dir() else files.map_file(path)
  with futures.ThreadPoolExecutor(1) as pool:  # hashing needs no interpreter
    hashing = pool.submit(_sha256, path, content)
    try:
      found = _load(path, content, model, entry, preprocessing)
    except errors.WeightsError:
      if entry:
        known.check_digest(path, entry, hashing.result())
      raise
    sha256 = hashing.result()
  if entry:
    known.check_digest(path, entry, sha256)
  loaded = found.variables
  if found.not_loaded:
    loaded["params"]["head"] = _shapes(model)["params"]["head"]
    loaded = heads.init_head(model, loaded, seed, sha256)
  return found._replace(variables=loaded, name=str(name_or_path), sha256=sha256, revision=revision)


def random_weights(
  model: nn.Module, *, preprocessing: preprocess.Preprocessing | str, seed: int = 0
) -> Pretrained:
  """Initialises a model at random, to train it from nothing.

  Args:
    model: from `models.create`.
    preprocessing: a `Preprocessing` or a key of `preprocess.PRESETS`.
    seed: of the initialisation.
  """
  size = model.image_size
  variables = backbone.initialise(model, jax.random.key(seed), jnp.zeros((1, size, size, 3)))
  name = f"random, seed {seed}"
  seen = preprocess.preset(preprocessing)
  return Pretrained(variables, seen, name, hashlib.sha256(name.encode()).hexdigest(), ())


def _sha256(path: pathlib.Path, content: mmap.mmap | bytes | None) -> str:
  return files.digest(path) if content is None else hashlib.sha256(content).hexdigest()


def _load(
  path: pathlib.Path,
  content: mmap.mmap | bytes | None,
  model: nn.Module,
  entry: known.Known | None,
  preprocessing: preprocess.Preprocessing | str | None,
) -> Pretrained:
  """What a file holds, without its digest; a head that it lacks is left out."""
  where, shapes = str(path), _shapes(model)
  tensors = files.read_folder(path) if content is None else files.parse(content, where)
  if entry and entry.part:
    tensors = {name: value for name, value in tensors.items() if name.startswith(entry.part)}
  match = matching.recognise(tensors, model, matching.paths(shapes), where)
  loaded, not_loaded = matching.convert(tensors, shapes, match, where)
  notes: tuple[str, ...] = ()
  if not entry:  # the folder of known files is shared
    notes = stated.check(path, model, match, tensors, not not_loaded)
  if notes:
    logging.info("%s: not checked: %s", where, "; ".join(notes))
  seen = _preprocessing(preprocessing, path, entry, match.scheme)
  resized = _resized(model, match, tensors)
  return Pretrained(loaded, seen, where, "", not_loaded, notes, resized=resized)


def _resized(
  model: nn.Module, match: matching.Match, tensors: Mapping[str, Any]
) -> tuple[int, int] | None:
  """`Pretrained.resized`."""
  source = match.sources.get("params/embedding/positions")
  if source is None or not isinstance(model, vit.ViT):
    return None
  count = tensors[source.keys[0]].shape[-2]
  found, own = positions.rows(count, model.class_token), model.image_size // model.patch_size
  return None if found == own else (found, own)


@functools.lru_cache(maxsize=8)
def _shapes(model: nn.Module) -> Mapping[str, Any]:
  """The model's variables as shapes."""
  images = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), images)


def _preprocessing(
  given: preprocess.Preprocessing | str | None,
  path: pathlib.Path,
  entry: known.Known | None,
  scheme: Any,
) -> preprocess.Preprocessing:
  if given is not None:
    return preprocess.preset(given)
  found = (entry and entry.preprocessing) or sidecar.read(path) or scheme.preprocessing
  if found is None:
    raise errors.WeightsError(
      f"{path}, read as {scheme.title}, does not say how its network saw images; give "
      f"preprocessing= one of {', '.join(map(repr, preprocess.PRESETS))}, or a Preprocessing"
    )
  return found
