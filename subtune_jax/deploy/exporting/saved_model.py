"""A network as TensorFlow's SavedModel (`jax.experimental.jax2tf`).

The folder also holds `model.json` and a README.
"""

import os
import pathlib
from typing import Any

import jax
import numpy as np

from subtune_jax.deploy import classifier as classifier_lib
from subtune_jax.deploy.exporting import program, stablehlo

_README = """\
# A trained network as a SavedModel

The signature `serving_default` goes from `images` [batch, {size}, {size}, 3] ({dtype}, RGB, 0..255;
any batch size) to `logits` and `probabilities` [batch, {classes}]; the normalisation is inside.
Class names are in `model.json`.

```python
import tensorflow as tf

network = tf.saved_model.load("FOLDER").signatures["serving_default"]
answers = network(images=tf.zeros((1, {size}, {size}, 3), tf.{dtype}))
```
"""


def write(
  classifier: classifier_lib.Classifier, path: str | os.PathLike, *, dtype: str = "uint8"
) -> pathlib.Path:
  """Writes the folder, after TensorFlow has run what is in it.

  Args:
    classifier: what is exported.
    path: of a new folder.
    dtype: of the images, one of `program.DTYPES`.

  Returns:
    The folder.

  Raises:
    ExportError: the network cannot be exported, or something lies at `path`.
    ImportError: TensorFlow is not installed.
  """
  tf = _tensorflow()
  said = program.facts(classifier, **program.signature(classifier, dtype))
  with program.new_folder(path) as folder:
    network = _module(tf, classifier, dtype)
    tf.saved_model.save(network, str(folder), signatures={"serving_default": network.answer})
    read = tf.saved_model.load(str(folder)).signatures["serving_default"]
    try:
      program.check(classifier, lambda images: _run(tf, read, images), dtype)
    except tf.errors.OpError as e:
      raise program.ExportError(
        f"TensorFlow {tf.__version__} cannot run what jax {jax.__version__} wrote "
        f"({' '.join(str(e).split())[:300]}); export to stablehlo or onnx, or take an older "
        "jax or a newer TensorFlow"
      ) from e
    size, classes = classifier.image_size, len(classifier.class_names)
    program.describe(folder, said, _README.format(size=size, dtype=dtype, classes=classes))
  return pathlib.Path(path)


def _module(tf: Any, classifier: classifier_lib.Classifier, dtype: str) -> Any:
  from jax.experimental import jax2tf

  size = classifier.image_size
  run = jax2tf.convert(
    program.function(classifier, "platforms"),
    polymorphic_shapes=[f"(batch, {size}, {size}, 3)"],
    with_gradient=False,
    native_serialization_platforms=stablehlo.DEFAULT,
  )
  spec = tf.TensorSpec((None, size, size, 3), getattr(tf, dtype), name=program.INPUT)
  module = tf.Module()
  module.answer = tf.function(run, input_signature=[spec], autograph=False)
  return module


def _run(tf: Any, signature: Any, images: np.ndarray) -> dict[str, np.ndarray]:
  found = signature(**{program.INPUT: tf.constant(images)})
  return {name: found[name].numpy() for name in program.OUTPUTS}


def _tensorflow() -> Any:
  try:
    import tensorflow
  except ImportError as e:
    raise ImportError(f"a SavedModel needs TensorFlow ({e}); pip install tensorflow") from e
  return tensorflow
