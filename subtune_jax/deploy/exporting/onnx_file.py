"""A network as one ONNX file, by jax2onnx; what a client has to know is in its metadata."""

from collections.abc import Iterator
import contextlib
import importlib.util
import logging
import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from subtune_jax import files, strict_json
from subtune_jax.deploy import classifier as classifier_lib
from subtune_jax.deploy.exporting import program

OPSET = 20  # the first with Gelu; onnxruntime 1.17 (2024) and later run it
_LOGGERS = ("jax2onnx", "onnx_ir")


def write(
  classifier: classifier_lib.Classifier, path: str | os.PathLike, *, dtype: str = "uint8"
) -> pathlib.Path:
  """Writes the file; one that is there is replaced.

  The program is run by onnxruntime before, where it is installed, and else checked by onnx.

  Args:
    classifier: what is exported.
    path: of a file whose name ends in .onnx.
    dtype: of the images, one of `program.DTYPES`.

  Returns:
    The path.

  Raises:
    ExportError: another name, or the network cannot be exported.
    ImportError: jax2onnx is not installed.
  """
  path = pathlib.Path(path)
  if path.suffix != ".onnx":
    raise program.ExportError(f"{path} is to be one file; give a name that ends in .onnx")
  said = program.facts(classifier, **program.signature(classifier, dtype))
  proto = _converted(classifier, dtype)
  _helper().set_model_props(
    proto, {name: value if isinstance(value, str) else strict_json.dumps(value)
            for name, value in said.items()}
  )  # fmt: skip
  data = proto.SerializeToString()
  _check(classifier, proto, data, dtype)
  files.write_atomically(path, data)
  return path


def _converted(classifier: classifier_lib.Classifier, dtype: str) -> Any:
  jax2onnx = _jax2onnx()
  answer = program.function(classifier, "onnx")

  def run(images):
    found = answer(images.astype(jnp.float32))
    return tuple(found[name] for name in program.OUTPUTS)

  size = classifier.image_size
  with _quiet():
    images = _spec(("batch", size, size, 3), dtype)
    try:
      return jax2onnx.to_onnx(
        run, [images], model_name="subtune_jax", opset=OPSET, input_names=[program.INPUT],
        output_names=list(program.OUTPUTS),
      )  # fmt: skip
    except NotImplementedError as e:
      raise program.ExportError(f"jax2onnx cannot convert this network: {e}") from e


def _spec(shape: tuple[Any, ...], dtype: str) -> Any:
  """Images for jax2onnx, whose batch dimension has a name."""
  import jax
  from jax import export

  batch = export.symbolic_shape(shape[0])
  return jax.ShapeDtypeStruct((*batch, *shape[1:]), jnp.dtype(dtype))


def _check(classifier: classifier_lib.Classifier, proto: Any, data: bytes, dtype: str) -> None:
  if importlib.util.find_spec("onnxruntime") is None:
    import onnx

    onnx.checker.check_model(proto, full_check=True)
    return
  import onnxruntime

  session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

  def run(images: np.ndarray) -> dict[str, np.ndarray]:
    found = session.run(list(program.OUTPUTS), {program.INPUT: images})
    return dict(zip(program.OUTPUTS, found, strict=True))

  program.check(classifier, run, dtype)


def _jax2onnx() -> Any:
  try:
    with _quiet():
      import jax2onnx
  except ImportError as e:
    raise ImportError(
      f"ONNX needs jax2onnx ({e}); install it: pip install 'subtune-jax[onnx]'"
    ) from e
  return jax2onnx


def _helper() -> Any:
  import onnx.helper

  return onnx.helper


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """jax2onnx logs the plugins that it does not load and shapes that it does not know."""
  loggers = [logging.getLogger(name) for name in _LOGGERS]
  levels = [logger.level for logger in loggers]
  try:
    for logger in loggers:
      logger.setLevel(logging.ERROR)
    yield
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)
