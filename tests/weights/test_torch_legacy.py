"""The legacy reader: right values for honest files, one error and no execution for all others."""

import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from subtune_jax import weights
from subtune_jax.weights import files, torch_legacy
from tests.weights import legacy_files


def _read(data: bytes):
  return files.parse(data, "file.pth")


def _example() -> dict[str, legacy_files.Tensor]:
  rng = np.random.default_rng(0)
  shared = rng.normal(size=24).astype(np.float32)
  return {
    "dense": legacy_files.dense(rng.normal(size=(2, 3)).astype(np.float32), "0"),
    "transposed": legacy_files.Tensor(shared, "1", (4, 3), (1, 4), 2),
    "row": legacy_files.Tensor(shared, "1", (6,), (1,), 18),
    "count": legacy_files.Tensor(np.array([7]), "2", (), ()),
  }


def test_reads_shapes_strides_offsets_and_shared_storages():
  tensors = _example()
  got = _read(legacy_files.write(tensors))
  assert list(got) == list(tensors)
  shared = tensors["row"].storage
  np.testing.assert_array_equal(got["dense"], tensors["dense"].storage.reshape(2, 3))
  np.testing.assert_array_equal(got["transposed"], shared[2:14].reshape(3, 4).T)
  np.testing.assert_array_equal(got["row"], shared[18:])
  assert got["count"] == 7
  assert got["count"].dtype == np.int64


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "uint8"])
def test_equals_torch_on_a_file_that_torch_wrote(tmp_path, dtype):
  torch = pytest.importorskip("torch", reason="torch has no wheel for this Python here")
  generator = torch.Generator().manual_seed(0)
  base = (torch.randn(6, 5, generator=generator) * 50).to(getattr(torch, dtype))
  state = {"a": base, "b": base.T[1:4], "c": base[2, 3].clone()}
  if base.is_floating_point():
    state["d"] = torch.nn.Parameter(base.clone())
  path = tmp_path / "w.pth"
  torch.save(state, path, _use_new_zipfile_serialization=False)
  got = weights.read_tensors(path)
  assert list(got) == list(state)
  for name, value in state.items():
    np.testing.assert_array_equal(np.float64(got[name]), value.detach().double().numpy())


def test_reads_the_metadata_that_torch_adds_to_a_state_dict(tmp_path):
  torch = pytest.importorskip("torch", reason="torch has no wheel for this Python here")
  layer = torch.nn.Linear(3, 2)
  path = tmp_path / "w.pth"
  torch.save(layer.state_dict(), path, _use_new_zipfile_serialization=False)
  np.testing.assert_array_equal(weights.read_tensors(path)["weight"], layer.weight.detach().numpy())


# ------------------------------------------------------------------ files that ask for more


_GLOBALS = (
  "os system",
  "posix system",
  "subprocess Popen",
  "builtins eval",
  "builtins exec",
  "builtins getattr",
  "builtins __import__",
  "__builtin__ eval",
  "importlib import_module",
  "torch load",
  "torch hub.load",
  "torch FloatStorage.from_file",
  "torch._utils _rebuild_tensor_v2.__globals__",
  "torch.serialization load",
  "torch.jit load",
  "numpy load",
  "numpy.core.multiarray _reconstruct",
  "numpy.core.multiarray scalar.tobytes",
  "functools partial",
  "operator attrgetter",
  "collections defaultdict",
  "pickle loads",
)


def _call(name: str, argument: str) -> bytes:
  """Opcodes that call a global with one string."""
  module, attribute = name.split(" ", 1)
  return f"c{module}\n{attribute}\n".encode() + legacy_files.text(argument) + b"\x85R"


def _call_by_stack(name: str, argument: str) -> bytes:
  """Likewise with protocol 4's opcode, which takes the name from the stack."""
  module, attribute = name.split(" ", 1)
  name_on_stack = legacy_files.text(module) + legacy_files.text(attribute) + b"\x93"
  return name_on_stack + legacy_files.text(argument) + b"\x85R"


def _call_by_instance(name: str, argument: str) -> bytes:
  """Likewise with protocol 0's opcode for instances."""
  module, attribute = name.split(" ", 1)
  return b"(" + legacy_files.text(argument) + f"i{module}\n{attribute}\n".encode()


@pytest.mark.parametrize("call", [_call, _call_by_stack, _call_by_instance])
@pytest.mark.parametrize("name", _GLOBALS)
def test_a_pickle_that_names_anything_else_is_refused_by_name(tmp_path, name, call):
  sentinel = tmp_path / "sentinel"
  opcodes = call(name, f"touch {sentinel}" if "system" in name else f"open({str(sentinel)!r}, 'w')")
  for pickled in (legacy_files.body({"w": opcodes}), b"\x80\x02" + opcodes + b"."):
    with pytest.raises(weights.WeightsError, match="was refused") as error:
      _read(legacy_files.write(_example(), pickled=pickled))
    assert repr(name.replace(" ", ".")) in str(error.value)
  assert not sentinel.exists()


def test_the_same_calls_do_execute_in_an_unrestricted_unpickler(tmp_path):
  """Shows that the hostile pickles above are real ones."""
  sentinel = tmp_path / "sentinel"
  pickle.loads(b"\x80\x02" + _call("os system", f"touch {sentinel}") + b".")
  assert sentinel.exists()


@pytest.mark.parametrize("slot", ["system", "keys"])
def test_the_other_pickles_of_the_file_are_restricted_too(slot):
  hostile = b"\x80\x02" + _call("os system", "true") + b"."
  if slot == "system":
    data = legacy_files.write(_example(), system=hostile)
  else:
    data = legacy_files.MAGIC + pickle.dumps(1001, 2) + legacy_files.SYSTEM
    data += legacy_files.body({}) + hostile
  with pytest.raises(weights.WeightsError, match=r"'os\.system'"):
    _read(data)


_OPCODES = {
  "calls a tensor": legacy_files.tensor(_example()["dense"]) + b")R",
  "calls a storage type": b"ctorch\nFloatStorage\n)R",
  "calls text": legacy_files.text("os.system") + b")R",
  "calls with arguments that are no tuple": b"ccollections\nOrderedDict\n]R",
  "gives OrderedDict its items": b"ccollections\nOrderedDict\n](KKe\x85R",
  "sets attributes of a function": b"ccollections\nOrderedDict\n}b",
  "sets attributes of a tensor": legacy_files.tensor(_example()["dense"]) + b"}b",
  "sets attributes from a tuple": b"}N}\x86b",
  "makes an object": b"ccollections\nOrderedDict\n)\x81",
  "makes bytes": b"C\x01a",
  "a key that is a tuple": b"})Ns",
  "reads a memo that was not written": b"h\x07",
  "pops an empty stack": b"\x86",
  "pops through a mark": b"K\x01(\x85",
  "closes a group that is not open": b"t",
  "a tensor without a storage": b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89Nt" + b"R",
  "a parameter that is text": b"ctorch._utils\n_rebuild_parameter\n" + legacy_files.text("a")
  + b"\x85R",
  "a storage that is text": legacy_files.text("a") + b"Q",
  "a storage that is a view": b"(" + legacy_files.text("storage") + b"ctorch\nFloatStorage\n"
  + legacy_files.text("0") + legacy_files.text("cpu") + b"K\x06)tQ",
  "a nested dict": b"}",
  "a number": b"K\x01",
}  # fmt: skip


@pytest.mark.parametrize("what", _OPCODES)
def test_opcodes_that_no_state_dict_needs_are_refused(what):
  data = legacy_files.write(_example(), pickled=legacy_files.body({"w": _OPCODES[what]}))
  with pytest.raises(weights.WeightsError, match=r"file\.pth"):
    _read(data)


@pytest.mark.parametrize(
  "opcodes",
  [
    b"Nr\xff\xff\xff\xff",  # a memo index of 2**32 - 1
    b"\x96" + struct.pack("<Q", 1 << 40),  # a bytearray of 1 TiB
    b"\x8d" + struct.pack("<Q", 1 << 40),  # a text of 1 TiB
    b"X\xff\xff\xff\x7f",  # a text of 2 GiB
    b"\x8b\xff\xff\xff\x7f",  # an integer of 2 GiB
    b")" * 20_000 + b"\x85" * 20_000,  # a deep tuple
  ],
  ids=["memo", "bytearray", "text8", "text4", "long4", "deep"],
)
def test_a_pickle_cannot_ask_for_memory(opcodes):
  data = legacy_files.write(_example(), pickled=legacy_files.body({"w": opcodes}))
  tracemalloc.start()
  try:
    with pytest.raises(weights.WeightsError):
      _read(data)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 100 * len(data) + 1_000_000


# ------------------------------------------------------------------ contradictions


@pytest.mark.parametrize("part", range(50))
def test_a_truncated_file_is_one_clear_error(tmp_path, part):
  data = legacy_files.write(_example())
  path = tmp_path / "cut.pth"
  path.write_bytes(data[: len(data) * part // 50])
  with pytest.raises(weights.WeightsError, match=r"cut\.pth"):
    weights.read_tensors(path)


def test_every_single_cut_of_a_small_file_is_the_same_error():
  data = legacy_files.write({"a": _example()["dense"]})
  for end in range(len(torch_legacy.SIGNATURE), len(data)):
    with pytest.raises(weights.WeightsError, match="damaged"):
      _read(data[:end])


_F4 = np.arange(6, dtype=np.float32)
_LIES = {
  "more values than the storage": legacy_files.Tensor(_F4, "0", (2, 4), (4, 1)),
  "offset past the end": legacy_files.Tensor(_F4, "0", (1,), (1,), 6),
  "stride past the end": legacy_files.Tensor(_F4, "0", (2, 2), (5, 1), 1),
  "negative stride": legacy_files.Tensor(_F4, "0", (2,), (-1,), 1),
  "negative size": legacy_files.Tensor(_F4, "0", (-2,), (1,)),
  "negative offset": legacy_files.Tensor(_F4, "0", (2,), (1,), -1),
  "huge size": legacy_files.Tensor(_F4, "0", (2**62, 4), (0, 0)),
  "huge stride": legacy_files.Tensor(_F4, "0", (2,), (2**62,)),
  "repeats values without end": legacy_files.Tensor(_F4, "0", (10**9,), (0,)),
  "empty and huge": legacy_files.Tensor(_F4, "0", (0, 2**62), (1, 1)),
  "sizes without strides": legacy_files.Tensor(_F4, "0", (2, 3), (1,)),
  "too many dimensions": legacy_files.Tensor(_F4, "0", (1,) * 64, (1,) * 64),
  "declares fewer values": legacy_files.Tensor(_F4, "0", (3,), (1,), 0, 5),
  "declares more values": legacy_files.Tensor(_F4, "0", (3,), (1,), 0, 7),
  "declares 2**61 values": legacy_files.Tensor(_F4, "0", (3,), (1,), 0, 2**61),
  "declares 2**100 values": legacy_files.Tensor(_F4, "0", (3,), (1,), 0, 2**100),
}


@pytest.mark.parametrize("what", _LIES)
def test_a_tensor_that_does_not_fit_its_storage_is_an_error(what):
  with pytest.raises(weights.WeightsError, match=r"file\.pth"):
    _read(legacy_files.write({"w": _LIES[what]}))


def _counted(value: int) -> bytes:
  data = legacy_files.write({"w": legacy_files.dense(_F4, "0")})
  return data[: -8 - _F4.nbytes] + struct.pack("<q", value) + _F4.tobytes()


_WHOLE = {
  "another protocol": legacy_files.write(_example(), protocol=1002),
  "big endian": legacy_files.write(_example(), system=pickle.dumps({"little_endian": False}, 2)),
  "a list": legacy_files.write(_example(), pickled=pickle.dumps([1], 2)),
  "a storage that is not listed": legacy_files.write(_example(), keys=["0", "1"]),
  "a storage that is listed twice": legacy_files.write(_example(), keys=["0", "1", "2", "2"]),
  "storages that are numbers": legacy_files.write(_example(), keys=[0, 1, 2]),
  "bytes after the end": legacy_files.write(_example()) + b"\0",
  "a count below the declared one": _counted(5),
  "a count above the declared one": _counted(7),
  "a negative count": _counted(-1),
}


@pytest.mark.parametrize("what", _WHOLE)
def test_a_file_that_contradicts_itself_is_an_error(what):
  with pytest.raises(weights.WeightsError, match=r"file\.pth"):
    _read(_WHOLE[what])


def test_one_storage_declared_with_two_sizes_is_an_error():
  a = legacy_files.Tensor(_F4, "0", (2,), (1,))
  with pytest.raises(weights.WeightsError, match="declared twice"):
    _read(legacy_files.write({"a": a, "b": a._replace(numel=5)}))


def test_random_bytes_in_the_pickles_never_end_in_another_error():
  data = legacy_files.write(_example())
  pickles = len(data) - 8 * 3 - 4 * (6 + 24) - 8
  rng = np.random.default_rng(0)
  outcomes = {"read": 0, "error": 0}
  for _ in range(3000):
    changed = bytearray(data)
    for position in rng.integers(len(torch_legacy.SIGNATURE), pickles, size=rng.integers(1, 4)):
      changed[position] = rng.integers(256)
    try:
      _read(bytes(changed))
      outcomes["read"] += 1
    except weights.WeightsError:
      outcomes["error"] += 1
  assert outcomes["error"] > 1000


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"<html>", b"\x80\x04K\x01."])
def test_a_file_in_another_format_says_what_is_supported(tmp_path, data):
  path = tmp_path / "weights.bin"
  path.write_bytes(data)
  with pytest.raises(weights.WeightsError, match=r"weights\.bin.*supported formats: torch \.pth"):
    weights.read_tensors(path)


def test_a_missing_file_and_a_folder_are_clear_errors(tmp_path):
  for path in (tmp_path / "none.pth", tmp_path):
    with pytest.raises(weights.WeightsError, match="cannot read weights from"):
      weights.read_tensors(path)
