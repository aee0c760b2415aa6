"""Reads the tensors of an ONNX file, through the library `onnx`; the graph is looked at, never run.

torch's exporter keeps the names of biases, norms and convolutions, and folds the transpose of a
linear layer's matrix, and slices of positions, into constants called `onnx::MatMul_1966`. The graph
says what those are:

  matrix      MatMul reads it, and an Add joins the product with `NAME.bias`: transposed, it is
              `NAME.weight`
  positions   a Concat joins [1, 1, width], of the class token, and [1, n, width], which it reads
              reshaped and resized: `SCOPE.position_embeddings`, SCOPE being that of the Concat
"""

from collections.abc import Iterator
import mmap
from typing import Any

import numpy as np

from subtune_jax.weights import errors, raw_arrays

_VERSION = b"\x08"  # the key of a protobuf's first field, in ONNX the version
_AFTER = b"\x12\x1a\x22\x32\x3a\x42"  # keys of the fields that a writer puts second
_RESHAPES = ("Cast", "Reshape", "Resize", "Transpose")
_FIX = "export it with torch.onnx.export(..., dynamo=False), or save its tensors as safetensors"


def matches(data: mmap.mmap | bytes) -> bool:
  """Tells whether a file starts as a model in protobuf does."""
  return data[:1] == _VERSION and data[2:3] != b"" and data[2:3] in _AFTER


def read(data: bytes) -> dict[str, np.ndarray]:
  """Returns the tensors by name: those that have one, and those that the graph names.

  Raises:
    Refused: `onnx` is not installed, tensors lie in other files or hold no numbers, or the graph
      gives a name twice.
    Damaged: not a protobuf of ONNX, or a tensor of another length than its shape.
  """
  try:
    import onnx
  except ImportError as e:
    raise errors.Refused("it is an ONNX file", "run: pip install onnx") from e
  try:
    graph = onnx.load_model_from_string(data).graph
  except Exception as e:  # protobuf's own errors, which differ between its implementations
    raise errors.Damaged(f"it is no ONNX model ({errors.quote(str(e))[1:-1]})") from e
  stored = {tensor.name: _array(onnx, tensor) for tensor in graph.initializer}
  tensors = {name: value for name, value in stored.items() if "::" not in name}
  for name, value in (*_matrices(graph.node, stored), *_positions(graph.node, stored)):
    if name in tensors:
      raise errors.Refused(f"its graph has two tensors {errors.quote(name)}", _FIX)
    value.flags.writeable = False
    tensors[name] = value
  return tensors


def _array(onnx: Any, tensor: Any) -> np.ndarray:
  """The values of a tensor in the file; read-only."""
  what = f"tensor {errors.quote(tensor.name)}"
  if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
    raise errors.Refused(f"{what} lies in another file", "save the model in one file")
  try:
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
  except (KeyError, TypeError, ValueError) as e:
    raise errors.Refused(f"{what} is of type {tensor.data_type}", _FIX) from e
  if dtype.kind not in "biufcV":
    raise errors.Refused(f"{what} holds no numbers", _FIX)
  if tensor.HasField("raw_data"):
    return raw_arrays.array(what, tensor.raw_data, dtype.newbyteorder("<"), list(tensor.dims))
  try:
    values = onnx.numpy_helper.to_array(tensor)
  except (TypeError, ValueError) as e:
    raise errors.Damaged(f"{what} has another number of values than its shape") from e
  values.flags.writeable = False
  return values


def _matrices(nodes: Any, stored: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
  """Yields "NAME.weight" and its matrix, [out, in], of each product that meets NAME's bias."""
  biased = {}
  for node in nodes:
    if node.op_type == "Add" and len(node.input) == 2:
      for product, bias in (node.input, node.input[::-1]):
        if bias in stored and bias.endswith(".bias"):
          biased[product] = bias.removesuffix("bias") + "weight"
  for node in nodes:
    if node.op_type == "MatMul" and len(node.input) == 2 and node.output:
      matrix, name = stored.get(node.input[1]), biased.get(node.output[0])
      if matrix is not None and name and "::" in node.input[1] and matrix.ndim == 2:
        yield name, matrix.T


def _positions(nodes: Any, stored: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
  """Yields "SCOPE.position_embeddings", [1, 1 + n, width], of each Concat that joins the two."""
  makers = {name: node for node in nodes for name in node.output}

  def origin(name: str) -> np.ndarray | None:
    for _ in range(len(makers)):
      node = makers.get(name)
      if node is None or node.op_type not in _RESHAPES or not node.input:
        break
      name = node.input[0]
    return stored.get(name)

  for node in nodes:
    if node.op_type == "Concat" and len(node.input) == 2 and "::" in node.input[0]:
      first, rest = stored.get(node.input[0]), origin(node.input[1])
      if first is None or rest is None or rest.ndim != 3 or first.shape[:2] != (1, 1):
        continue
      if rest.shape[0] == 1 and rest.shape[2:] == first.shape[2:]:
        scope = ".".join(node.name.strip("/").split("/")[:-1])
        yield f"{scope}.position_embeddings", np.concatenate([first, rest], axis=1)
