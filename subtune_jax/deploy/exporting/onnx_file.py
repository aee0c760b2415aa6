"""A network as one ONNX file, by jax2onnx; what a client has to know is in its metadata."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
  path = check_name(path)
  said = program.facts(classifier, **program.signature(classifier, dtype))
  answer = program.function(classifier, "onnx")

  def run(images):
    found = answer(images.astype(jnp.float32))
    return tuple(found[name] for name in program.OUTPUTS)

  proto = converted(run, classifier.image_size, dtype, program.OUTPUTS)
  write_checked(
    path, proto, said, program.OUTPUTS, lambda run: program.check(classifier, run, dtype)
  )
  return path


def check_name(path: str | os.PathLike) -> pathlib.Path:
  """The path of the file. Raises ExportError: another name than one that ends in .onnx."""
  path = pathlib.Path(path)
  if path.suffix != ".onnx":
    raise program.ExportError(f"{path} is to be one file; give a name that ends in .onnx")
  return path


def write_checked(
  path: pathlib.Path, proto: Any, said: Mapping[str, Any], outputs: Sequence[str],
  check: Callable[[Callable[[np.ndarray], dict[str, np.ndarray]]], None],
) -> None:  # fmt: skip
  """Writes the program with its metadata.

  Args:
    path: of the file.
    proto: of `converted`.
    said: metadata.
    outputs: names.
    check: takes the program as onnxruntime runs it, from images to outputs by name, and raises
      ExportError. Without onnxruntime, onnx's checker stands in for it.
  """
  _helper().set_model_props(
    proto, {name: value if isinstance(value, str) else strict_json.dumps(value)
            for name, value in said.items()}
  )  # fmt: skip
  data = proto.SerializeToString()
  if importlib.util.find_spec("onnxruntime") is None:
    import onnx

    onnx.checker.check_model(proto, full_check=True)
  else:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = list(outputs)
    check(lambda x: dict(zip(names, session.run(names, {program.INPUT: x}), strict=True)))
  files.write_atomically(path, data)


def converted(
  run: Callable[[Any], tuple[Any, ...]], size: int, dtype: str, outputs: Sequence[str]
) -> Any:
  """A function of images [batch, size, size, 3] as an ONNX model.

  Args:
    run: gives a tuple of arrays.
    size: of the images.
    dtype: theirs.
    outputs: names of what it gives.

  Raises:
    ExportError: it cannot be converted.
    ImportError: jax2onnx is not installed.
  """
  jax2onnx = _jax2onnx()
  with _quiet():
    images = _spec(("batch", size, size, 3), dtype)
    try:
      return jax2onnx.to_onnx(
        run, [images], model_name="subtune_jax", opset=OPSET, input_names=[program.INPUT],
        output_names=list(outputs),
      )  # fmt: skip
    except NotImplementedError as e:
      raise program.ExportError(f"jax2onnx cannot convert this network: {e}") from e


def _spec(shape: tuple[Any, ...], dtype: str) -> Any:
  """Images for jax2onnx, whose batch dimension has a name."""
  import jax
  from jax import export

  batch = export.symbolic_shape(shape[0])
  return jax.ShapeDtypeStruct((*batch, *shape[1:]), jnp.dtype(dtype))


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
