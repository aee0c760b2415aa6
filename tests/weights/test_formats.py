"""Every format, saved by its real writer, is read back equal; containers give the right dict."""

import argparse
import hashlib
import io
import logging
import pathlib
import sys
import zipfile

from flax import serialization
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest

from subtune_jax import weights
from subtune_jax.weights import files, zip_archive
from tests.weights import legacy_files

_NO_TORCH = "torch has no wheel for this Python here"


def _torch():
  return pytest.importorskip("torch", reason=_NO_TORCH)


def _arrays() -> dict[str, np.ndarray]:
  """Arrays of all kinds that weights come in."""
  rng = np.random.default_rng(0)
  return {
    "conv.weight": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
    "half": rng.normal(size=(5, 3)).astype(np.float16),
    "brain": rng.normal(size=(2, 7)).astype(ml_dtypes.bfloat16),
    "count": np.array(7, np.int64),
    "indices": rng.integers(-(2**40), 2**40, (3, 3)),
    "mask": np.array([True, False, True]),
    "bytes": np.arange(5, dtype=np.uint8),
    "empty": np.zeros((0, 3), np.float32),
  }


def _assert_equal(got, expected) -> None:
  assert set(got) == set(expected)
  for name, value in expected.items():
    assert got[name].dtype == value.dtype, name
    assert got[name].shape == value.shape, name
    assert not got[name].flags.writeable, name
    np.testing.assert_array_equal(got[name], value, err_msg=name)


def _parse(data: bytes):
  return files.parse(data, "file.any")


# ------------------------------------------------------------------ torch


def _saved(value, legacy: bool = False) -> bytes:
  stream = io.BytesIO()
  _torch().save(value, stream, _use_new_zipfile_serialization=not legacy)
  return stream.getvalue()


def _as_torch(array: np.ndarray):
  torch = _torch()
  if array.dtype == ml_dtypes.bfloat16:
    return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
  return torch.from_numpy(array)


def _as_numpy(tensor) -> np.ndarray:
  torch = _torch()
  tensor = tensor.detach()
  if tensor.dtype == torch.bfloat16:
    return tensor.float().numpy().astype(ml_dtypes.bfloat16)
  return tensor.numpy()


def _assert_equals_torch(got, state) -> None:
  _assert_equal(got, {name: _as_numpy(tensor) for name, tensor in state.items()})


@pytest.fixture(params=[False, True], ids=["zip", "legacy"])
def legacy(request):
  return request.param


def test_a_torch_file_is_read_back_equal(legacy):
  state = {name: _as_torch(array) for name, array in _arrays().items()}
  got = _parse(_saved(state, legacy))
  assert list(got) == list(state)
  _assert_equals_torch(got, state)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64"])
def test_a_torch_file_of_strided_and_shared_tensors(legacy, dtype):
  torch = _torch()
  base = (torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * 50).to(
    getattr(torch, dtype)
  )
  state = {
    "whole": base,
    "same": base,
    "rows": base[2:4],
    "transposed": base.T[1:4],
    "steps": base[::2, 1::3],
    "one": base[2, 3],
    "none": base[:0],
    "none with an offset": base[6:],
    "channels last": torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
  }
  _assert_equals_torch(_parse(_saved(state, legacy)), state)


def test_stored_tensors_are_views_of_the_file(legacy):
  data = _saved({"w": _as_torch(np.ones((1000, 1000), np.float32))}, legacy)
  assert np.shares_memory(_parse(data)["w"], np.frombuffer(data, np.uint8))


def _module():
  torch = _torch()

  class Inner(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1 = torch.nn.Conv2d(3, 4, 2, bias=False)
      self.layers = torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.ReLU())
      self.class_embedding = torch.nn.Parameter(torch.randn(4))
      self.size = 7

    def forward(self, x):
      return self.layers(self.conv1(x)).mean((2, 3)) + self.class_embedding

  class Outer(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.visual = Inner()
      self.heads = torch.nn.ModuleList([torch.nn.Linear(4, 2) for _ in range(2)])
      self.logit_scale = torch.nn.Parameter(torch.ones([]))
      self.register_buffer("input_resolution", torch.tensor(224))
      self.names = ["a", "b"]
      self.sizes = [1, 2]
      self.rate = 0.5

    def forward(self, x):
      x = self.visual(x)
      for head in self.heads:
        x = x + head(x).sum() * self.logit_scale
      return x

  return Outer().eval()


@pytest.mark.parametrize("half", [False, True], ids=["float", "half"])
@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_torchscript_archive_gives_the_modules_state_dict(how, half):
  torch = _torch()
  module, x = _module(), torch.ones(1, 3, 4, 4)
  if half:
    module, x = module.half(), x.half()
  made = torch.jit.script(module) if how == "script" else torch.jit.trace(module, x)
  stream = io.BytesIO()
  torch.jit.save(made, stream)
  got = _parse(stream.getvalue())
  assert "visual.conv1.weight" in got
  _assert_equals_torch(got, module.state_dict())


def _trained() -> dict:
  """A checkpoint as training scripts write them: much beside the weights."""
  torch = _torch()
  model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
  optimizer = torch.optim.AdamW(model.parameters())
  model(torch.randn(4, 3)).square().sum().backward()
  optimizer.step()
  settings = argparse.Namespace(lr=0.1, layers=[1, 2], out=None, nested=argparse.Namespace(a=1))
  return {
    "epoch": 3, "arch": "resnet50", "state_dict": model.state_dict(),
    "optimizer": optimizer.state_dict(), "args": settings, "best_acc1": torch.tensor(76.1),
    "accuracy": np.float64(0.5), "steps": np.int64(7), "size": torch.Size([1, 2]),
    "dtype": torch.bfloat16, "large": 2**40, "rng": b"\x00\xff", "scaler": None,
  }  # fmt: skip


def test_a_training_checkpoint_gives_its_state_dict_and_says_what_it_drops(legacy, caplog):
  checkpoint = _trained()
  with caplog.at_level(logging.INFO, logger="absl"):
    got = _parse(_saved(checkpoint, legacy))
  _assert_equals_torch(got, checkpoint["state_dict"])
  assert "state_dict is taken; dropped beside it: epoch, arch, optimizer, args" in caplog.text
  assert "7 tensors" in caplog.text


def _containers() -> dict:
  torch = _torch()
  a, b = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
  return {
    **{k: ({k: a, "epoch": 1}, {"w"}) for k in ("state_dict", "model", "model_state_dict", "ema")},
    "teacher alone": ({"teacher": a}, {"w"}),
    "student alone": ({"student": a}, {"w"}),
    "teacher and student": ({"student": b, "teacher": a, "epoch": 1}, {"w"}),
    "two levels": ({"state_dict": {"model": a, "epoch": 1}}, {"w"}),
    "nested": ({"model": {"backbone": {"0": a, 1: a}}}, {"backbone.0.w", "backbone.1.w"}),
    "a key that is no container": ({"model": 1, "state_dict": a}, {"w"}),
    "not only tensors": ({"w": a["w"], "input_resolution": 224, "name": "x", "n": None}, {"w"}),
    "a layer of that name": ({"state_dict": {"w": a["w"], "model": {"w": a["w"]}}},
                             {"w", "model.w"}),
  }  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
def test_the_right_dict_of_a_checkpoint_is_taken(legacy):
  for what, (value, names) in _containers().items():
    got = _parse(_saved(value, legacy))
    assert set(got) == names, what
    assert all((array == 1).all() for array in got.values()), what


def _refused() -> dict:
  torch = _torch()
  a = {"w": torch.ones(2)}
  loop = {"w": a["w"]}
  loop["again"] = loop
  return {
    "several": ({"model": a, "ema": a}, r"several state dicts \(model, ema\)"),
    "three": ({"model": a, "teacher": a, "student": a}, r"\(model, teacher, student\)"),
    "none": ({"epoch": 1, "optimizer": {"state": {0: a}}}, "it has epoch, optimizer"),
    "a module": (torch.nn.Linear(2, 2), r"'torch\.nn\.modules\.linear\.Linear'.*state_dict\(\)"),
    "a tensor": (a["w"], "holds a Tensor"),
    "a list": ([a["w"]], "holds a list"),
    "no tensor": ({"model": {"a": 1}}, "it has model"),
    "two of one name": ({"model": {"a": a, "a.w": a["w"]}}, r"two values of the name 'a\.w'"),
    "a loop": (loop, "levels deep"),
    "an array": ({"model": a, "rng": np.zeros(3)}, "_reconstruct"),
    "expanded": ({"w": torch.zeros(1).expand(5)}, "outside its storage"),
  }


def test_what_is_unclear_or_unsafe_is_one_error_with_the_fix(legacy):
  for what, (value, message) in _refused().items():
    with pytest.raises(weights.WeightsError, match=message) as error:
      _parse(_saved(value, legacy))
    assert str(error.value).startswith("file.any "), what
    assert "torch.save(model.state_dict(), path)" in str(error.value) or "damaged" in str(
      error.value
    ), what


# ------------------------------------------------------------------ torch files made by hand


def _dense(*names: str) -> dict[str, legacy_files.Tensor]:
  values = np.arange(3, dtype=np.float32)
  return {name: legacy_files.dense(values + i, str(i)) for i, name in enumerate(names)}


def _opcodes(*names: str) -> dict[str, bytes]:
  return {name: legacy_files.tensor(t) for name, t in _dense(*names).items()}


def _both(names: tuple[str, ...], pickled: bytes, script: bool = False) -> list[bytes]:
  """The same pickle in both of torch's formats."""
  tensors = _dense(*names)
  made = legacy_files.write_zip(tensors, pickled=pickled, script=script)
  return [made] if script else [made, legacy_files.write(tensors, pickled=pickled)]


def _good() -> dict[str, bytes]:
  a, b = _opcodes("a", "b").values()
  old = b.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor").replace(
    b"\x89ccollections\nOrderedDict\n)Rt", b"t"
  )
  size = b"ctorch\nSize\nK\x03\x85\x85R"
  return {
    "text of Python 2": b"}(U\x01a" + a + b"T\x01\x00\x00\x00b" + b + b"u",
    "an OrderedDict of Python 2": b"ccollections\nOrderedDict\n]((U\x01a" + a + b"tU\x01b" + b
    + b"\x86e\x85R",
    "torch 0.3": b"}(" + legacy_files.text("a") + a + legacy_files.text("b") + old + b"u",
    "a torch.Size": b"}(" + legacy_files.text("a") + a + legacy_files.text("b")
    + b.replace(legacy_files.numbers((3,)), size, 1) + b"u",
    "an integer as a key": b"}(" + legacy_files.text("a") + a + legacy_files.text("b") + b
    + b"K\x07Nu",
  }  # fmt: skip


@pytest.mark.parametrize("what", _good())
def test_older_forms_of_torchs_pickles_are_read(what):
  expected = {"a": np.arange(3, dtype=np.float32), "b": np.arange(1, 4, dtype=np.float32)}
  for data in _both(("a", "b"), b"\x80\x02" + _good()[what] + b"."):
    _assert_equal(_parse(data), expected)


def test_a_torchscript_object_is_admitted_in_its_archive_only():
  inner = legacy_files.module(_opcodes("w") | {"training": b"\x88"})
  pickled = b"\x80\x02" + legacy_files.module({"visual": inner, "size": b"K\x07"}) + b"."
  (script,) = _both(("w",), pickled, script=True)
  _assert_equal(_parse(script), {"visual.w": np.arange(3, dtype=np.float32)})
  for data in _both(("w",), pickled):
    with pytest.raises(weights.WeightsError, match=r"names '__torch__\.M\.M'"):
      _parse(data)


def _contradictions() -> dict[str, tuple[bytes, str]]:
  a = _opcodes("a")["a"]
  item = legacy_files.text("a") + a
  attributes = b"}" + item + b"sb"
  return {
    "a key twice": (b"}(" + item + item + b"u", "the key 'a' twice"),
    "a key twice, one by one": (b"}" + item + b"s" + item + b"s", "the key 'a' twice"),
    "a key that is a tuple": (b"})" + a + b"s", "key that is neither"),
    "a key of 100 bits": (b"}" + legacy_files.integer(2**100) + a + b"s", "key that is neither"),
    "state set twice": (b"c__torch__.M\nM\n)\x81" + attributes * 2, "state of an object twice"),
    "arguments for an object": (b"c__torch__.M\nM\nK\x01\x85\x81", "not an admitted class"),
    "an object of a function": (b"ccollections\nOrderedDict\n)\x81", "not an admitted class"),
    "an object of data": (b"ctorch\nfloat32\n)\x81", "not an admitted class"),
    "state that is no dict": (b"c__torch__.M\nM\n)\x81K\x01b", "no plain attributes"),
    "a class that is called": (b"cargparse\nNamespace\n)R", "not an admitted function"),
  }


@pytest.mark.parametrize("what", _contradictions())
def test_a_pickle_that_contradicts_itself_is_an_error(what):
  opcodes, message = _contradictions()[what]
  (data,) = _both(("a",), b"\x80\x02" + opcodes + b".", script=True)
  with pytest.raises(weights.WeightsError, match=message):
    _parse(data)


def test_a_big_endian_zip_is_refused():
  data = legacy_files.write_zip(_dense("a"), byteorder=b"big")
  with pytest.raises(weights.WeightsError, match="not written on a little-endian machine"):
    _parse(data)


def test_bytes_after_the_pickle_are_an_error():
  pickled = legacy_files.body(_opcodes("a")) + b"\0"
  with pytest.raises(weights.WeightsError, match="bytes follow its pickle"):
    _parse(legacy_files.write_zip(_dense("a"), pickled=pickled))


@pytest.mark.parametrize("numel", [2, 4])
def test_a_storage_of_another_length_than_declared_is_an_error(numel):
  tensors = {"a": _dense("a")["a"]._replace(numel=numel, shape=(2,))}
  with pytest.raises(weights.WeightsError, match=f"holds 12 bytes, {4 * numel} are declared"):
    _parse(legacy_files.write_zip(tensors))


def test_a_storage_that_is_not_there_is_an_error():
  pickled = legacy_files.body(_opcodes("a", "b"))
  with pytest.raises(weights.WeightsError, match="lists no 'w/data/1'"):
    _parse(legacy_files.write_zip(_dense("a"), pickled=pickled))


# ------------------------------------------------------------------ zip archives


def _zip_entry(data: bytes, name: str) -> int:
  """Returns where an entry's bytes start."""
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    header = archive.getinfo(name).header_offset
  sizes = data[header + 26 : header + 30]
  return header + 30 + int.from_bytes(sizes[:2], "little") + int.from_bytes(sizes[2:], "little")


def _npz(arrays, compressed: bool = False) -> bytes:
  stream = io.BytesIO()
  (np.savez_compressed if compressed else np.savez)(stream, **arrays)
  return stream.getvalue()


def test_one_changed_value_is_told_by_the_checksum():
  data = bytearray(_npz({"w": np.ones(9, np.float32)}))
  data[_zip_entry(data, "w.npy") + 128 + 5] ^= 1
  with pytest.raises(weights.WeightsError, match=r"file\.any is damaged: the checksum of 'w\.npy'"):
    _parse(bytes(data))


def test_a_large_archives_directory_is_read():
  """What zipfile writes for entries beyond 4 GiB, in an archive that is smaller."""
  data = _npz({"w": np.arange(4.0)})
  at = data.rindex(b"PK\x05\x06")
  start = int.from_bytes(data[at + 16 : at + 20], "little")
  central = bytearray(data[start:at])
  size = central[20:28]
  central[20:28] = b"\xff" * 8
  central[30:32] = (20).to_bytes(2, "little")
  central += b"\x01\x00\x10\x00" + size[4:] + b"\0" * 4 + size[:4] + b"\0" * 4
  number = len(central).to_bytes(8, "little")
  end = b"PK\x06\x06" + (44).to_bytes(8, "little") + b"-\0-\0" + b"\0" * 8
  end += (1).to_bytes(8, "little") * 2 + number + start.to_bytes(8, "little")
  locator = b"PK\x06\x07" + b"\0" * 4 + (start + len(central)).to_bytes(8, "little")
  tail = b"PK\x05\x06" + b"\0" * 4 + b"\xff" * 12 + b"\0\0"
  large = data[:start] + bytes(central) + end + locator + b"\1\0\0\0" + tail
  with zipfile.ZipFile(io.BytesIO(large)) as archive:  # it is a good one
    assert archive.testzip() is None
  np.testing.assert_array_equal(_parse(large)["w"], np.arange(4.0))


def test_deflated_entries_are_read_within_a_bound():
  rng = np.random.default_rng(0)
  honest = {"a": rng.normal(size=4000), "b": np.zeros(100_000, np.float32)}
  _assert_equal(_parse(_npz(honest, compressed=True)), honest)
  with pytest.raises(weights.WeightsError, match="zip bomb"):
    _parse(_npz({"a": np.zeros(2_000_000, np.float32)}, compressed=True))
  halves = {"a": np.zeros(150_000, np.float32), "b": np.zeros(150_000, np.float32)}
  with pytest.raises(weights.WeightsError, match="zip bomb"):
    _parse(_npz(halves, compressed=True))


def _written(**entries: bytes) -> bytes:
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w") as archive:
    for name, content in entries.items():
      archive.writestr(name, content)
  return stream.getvalue()


def _twice() -> bytes:
  data = _written(aa=b"1", ab=b"2")
  return data.replace(b"ab", b"aa")


def _overlapping() -> bytes:
  """Two directory entries of one local header."""
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w") as archive:
    archive.writestr("aa", b"1")
    info = archive.getinfo("aa")
    archive.filelist.append(info)
  return stream.getvalue()


def _uncounted() -> bytes:
  """Two entries, of which the directory's end counts one."""
  data = bytearray(_written(aa=b"1", ab=b"2"))
  at = data.rindex(b"PK\x05\x06")
  data[at + 8] = data[at + 10] = 1
  return bytes(data)


def _flag(bit: int) -> bytes:
  data = bytearray(_written(aa=b"1"))
  data[6] |= bit
  data[data.index(b"PK\x01\x02") + 8] |= bit
  return bytes(data)


def _method(method: int) -> bytes:
  data = bytearray(_written(aa=b"1"))
  data[8] = data[data.index(b"PK\x01\x02") + 10] = method
  return bytes(data)


def _nested() -> bytes:
  """A second local header inside the first entry's bytes."""
  inner = _written(bb=b"2")
  data = bytearray(_written(aa=inner, bb=b"2"))
  start = data.index(b"bb")  # of the inner archive
  at = data.rindex(b"PK\x01\x02")
  data[at + 42 : at + 46] = (start - 30).to_bytes(4, "little")
  return bytes(data)


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (_twice(), "twice"),
    (_overlapping(), "twice"),
    (_nested(), "overlap"),
    (_uncounted(), "longer or shorter"),
    (_flag(1), "encrypted"),
    (_method(12), "method 12"),
    (_written(aa=b"1")[:-1], "directory"),
    (_written(aa=b"1") + b"\0", "directory"),
    (_written(aa=b"1").replace(b"aa", b"ab", 1), "not where"),
    (_written(aa=b"1"), "neither torch's nor numpy's"),
  ],
  ids=[
    "twice",
    "overlapping",
    "nested",
    "uncounted",
    "encrypted",
    "lzma",
    "cut",
    "longer",
    "renamed",
    "other",
  ],
)
def test_an_archive_that_contradicts_itself_is_an_error(data, message):
  with pytest.raises(
    weights.WeightsError, match=f"^file.any (is damaged|was refused): .*{message}"
  ):
    _parse(data)


def test_an_entry_that_inflates_beyond_its_declared_size_is_an_error():
  data = bytearray(_npz({"a": np.zeros(1000, np.float32)}, compressed=True))
  at = data.index(b"PK\x01\x02")
  data[at + 24 : at + 28] = (500).to_bytes(4, "little")
  with pytest.raises(weights.WeightsError, match="not of the 500 bytes"):
    _parse(bytes(data))


# ------------------------------------------------------------------ the other formats


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_is_read_back_equal(compressed):
  arrays = _arrays() | {
    "Transformer/encoderblock_0/kernel": np.arange(6.0).reshape(2, 3).T,
    "big endian": np.arange(3, dtype=">f4"),
  }
  got = _parse(_npz(arrays, compressed))
  expected = {k: np.asarray(v, v.dtype.newbyteorder("=")) for k, v in arrays.items()}
  _assert_equal(got, expected)


def test_stored_npz_arrays_are_views_of_the_file():
  data = _npz({"w": np.ones(10_000)})
  assert np.shares_memory(_parse(data)["w"], np.frombuffer(data, np.uint8))


@pytest.mark.parametrize(
  "array",
  [
    np.array([{}], object),
    np.array(["text"]),
    np.array([b"text"]),
    np.zeros(2, "V4"),
    np.zeros(2, "M8[s]"),
    np.zeros(2, [("a", "f4")]),
  ],
  ids=lambda a: a.dtype.kind,
)
def test_npz_arrays_that_hold_no_numbers_are_refused(array):
  with pytest.raises(weights.WeightsError, match=r"array 'w' holds no numbers\..*savez"):
    _parse(_npz({"w": array}))


def test_safetensors_is_read_back_equal():
  numpy_writer = pytest.importorskip("safetensors.numpy")
  arrays = {k: np.ascontiguousarray(v) for k, v in _arrays().items()}
  _assert_equal(_parse(numpy_writer.save(arrays, metadata={"format": "np"})), arrays)


def test_safetensors_of_torch_is_read_back_equal():
  writer = pytest.importorskip("safetensors.torch")
  state = {name: _as_torch(array) for name, array in _arrays().items()}
  _assert_equals_torch(_parse(writer.save(state)), state)


def test_a_type_that_numpy_lacks_is_refused_by_name():
  writer = pytest.importorskip("safetensors.torch")
  state = {"w": _torch().ones(2).to(_torch().float8_e4m3fn)}
  with pytest.raises(weights.WeightsError, match=r"tensor 'w' is of type F8_E4M3\..*save it as"):
    _parse(writer.save(state))


def _tree(empty: bool = True) -> tuple[dict, dict[str, np.ndarray]]:
  """A nested tree as Flax has them, and its arrays by name."""
  flat = {f"params/block/{k}": v for k, v in _arrays().items() if v.size or empty}
  leaves = {k.removeprefix("params/block/"): v for k, v in flat.items()}
  return {"params": {"block": leaves}, "step": 3, "note": "x", "none": None}, flat


def test_msgpack_is_read_back_equal(caplog):
  tree, expected = _tree()
  tree["params"]["block"] = {k: jnp.asarray(v) if v.dtype != np.int64 else v
                             for k, v in tree["params"]["block"].items()}  # fmt: skip
  tree["scalar"] = np.float32(2.5)
  with caplog.at_level(logging.INFO, logger="absl"):
    got = _parse(serialization.to_bytes(tree))
  _assert_equal(got, expected | {"scalar": np.array(2.5, np.float32)})
  assert "3 values are dropped, as no arrays: step, note, none" in caplog.text


def test_msgpack_arrays_in_chunks_are_joined(monkeypatch):
  monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 16)
  tree = {"a": {"b": np.arange(24.0).reshape(2, 3, 4)}, "c": np.ones(2, ml_dtypes.bfloat16)}
  data = serialization.to_bytes(tree)
  assert b"__msgpack_chunked_array__" in data
  _assert_equal(_parse(data), {"a/b": tree["a"]["b"], "c": tree["c"]})


def test_a_msgpack_map_that_has_a_key_twice_is_an_error():
  data = serialization.to_bytes({"a": np.ones(1), "b": np.ones(2)})
  with pytest.raises(weights.WeightsError, match="a map has a key twice"):
    _parse(data.replace(b"\xa1b", b"\xa1a"))


def _array_bytes(length: int) -> bytes:
  """Flax's array of one float32, which declares another number of bytes."""
  inner = (
    msgpack.packb(([1], "float32")).replace(b"\x92", b"\x93") + bytes([0xC4, length]) + bytes(4)
  )
  return msgpack.packb({"a": msgpack.ExtType(1, inner)})


def _chunked(*chunks: np.ndarray, shape: int = 3) -> bytes:
  parts = {str(i): chunk for i, chunk in enumerate(chunks)}
  flag = {"__msgpack_chunked_array__": True}
  return serialization.to_bytes({"a": flag | {"shape": {"0": shape}, "chunks": parts}})


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (_array_bytes(3), "longer or shorter"),
    (_array_bytes(5), "longer or shorter"),
    (_chunked(np.ones(1, np.float32), np.ones(2, np.float16)), "not of one kind"),
    (_chunked(np.ones((1, 1)), np.ones((2, 1))), "not of one kind"),
    (_chunked(np.ones(1), np.ones(1)), "does not fit"),
    (_chunked(), "has none"),
  ],
)
def test_msgpack_arrays_that_contradict_themselves_are_an_error(data, message):
  with pytest.raises(weights.WeightsError, match=message):
    _parse(data)


@pytest.mark.parametrize("writer", [ocp.StandardCheckpointer, ocp.PyTreeCheckpointer])
def test_orbax_is_read_back_equal(tmp_path, writer):
  tree, expected = _tree(empty=False)  # Orbax saves no empty arrays
  del tree["note"], tree["step"]
  tree["list"] = [jnp.ones(2), jnp.zeros(())]
  if writer is ocp.PyTreeCheckpointer:
    tree["text"] = "x"
  checkpointer = writer()
  checkpointer.save(tmp_path / "saved", tree)
  checkpointer.close()
  expected |= {"list/0": np.ones(2, np.float32), "list/1": np.zeros((), np.float32)}
  _assert_equal(files.read_tensors(tmp_path / "saved"), expected)
  _assert_equal(files.read_folder(tmp_path / "saved"), expected)


def test_an_orbax_folder_that_inflates_is_refused(tmp_path):
  checkpointer = ocp.PyTreeCheckpointer()
  checkpointer.save(tmp_path / "saved", {"w": jnp.zeros(2_000_000)})
  with pytest.raises(weights.WeightsError, match="saved was refused: its arrays take 8000000 byte"):
    files.read_tensors(tmp_path / "saved")


def test_a_folder_that_is_no_checkpoint_is_an_error(tmp_path):
  with pytest.raises(weights.WeightsError, match="it is a folder, but no Orbax checkpoint"):
    files.read_folder(tmp_path)


# ------------------------------------------------------------------ hashes


def test_the_digest_of_a_file_is_its_sha256(tmp_path):
  (tmp_path / "a").write_bytes(b"abc")
  assert files.digest(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
  with pytest.raises(weights.WeightsError, match="cannot read weights from"):
    files.digest(tmp_path / "none")


def test_the_digest_of_a_folder_is_of_names_and_contents(tmp_path):
  def folder(name: str, contents: dict[str, bytes]) -> pathlib.Path:
    for path, content in contents.items():
      (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
      (tmp_path / name / path).write_bytes(content)
    return tmp_path / name

  first = files.digest(folder("0", {"a": b"1", "b/c": b"2"}))
  assert files.digest(folder("1", {"b/c": b"2", "a": b"1"})) == first
  others = [
    {"a": b"1", "b/d": b"2"},
    {"a": b"1", "b/c": b"3"},
    {"a": b"1"},
    {"a1": b"", "b/c": b"2"},
  ]
  digests = {files.digest(folder(f"x{i}", contents)) for i, contents in enumerate(others)}
  assert len(digests | {first}) == 5


@pytest.mark.parametrize(
  "data", [zip_archive.SIGNATURE, b"\x81", b"\xdf", b"\x10" + bytes(7) + b"{"]
)
def test_a_file_of_a_signature_alone_is_damaged(data):
  if data[-1:] == b"{":
    pytest.importorskip("safetensors")
  with pytest.raises(weights.WeightsError, match=r"file\.any is damaged"):
    _parse(data)


def test_without_the_library_a_safetensors_file_is_refused_with_the_command(monkeypatch):
  monkeypatch.setitem(sys.modules, "safetensors", None)
  with pytest.raises(weights.WeightsError, match="run: pip install safetensors"):
    _parse(b"\x02" + bytes(7) + b"{}")
