"""500 folders that are not adapters of a model, made from one that is."""

from collections.abc import Callable, Iterator
import json
import os
import pathlib
import pickle
import random
from typing import NamedTuple
import zipfile

import numpy as np
from safetensors.numpy import save

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
START = "base_model.model."
QKV = f"{START}blocks.0.attn.qkv"
NUMBER = 500


class Case(NamedTuple):
  """A hostile folder.

  Attributes:
    name: of the case.
    make: (folder, config, tensors) -> None; writes the files.
    told: what the error has to say; "" where a file is damaged at random.
  """

  name: str
  make: Callable[[pathlib.Path, dict, dict], None]
  told: str


class Marker:
  """Unpickling it leaves a file."""

  def __init__(self, path: pathlib.Path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def write(folder: pathlib.Path, config, tensors, text: str | bytes | None = None,
          data: bytes | None = None) -> None:  # fmt: skip
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(config) if text is None else text
  (folder / CONFIG).write_bytes(text.encode() if isinstance(text, str) else text)
  (folder / WEIGHTS).write_bytes(save(tensors) if data is None else data)


def _fields(name: str, told: str = "", **fields) -> Case:
  return Case(name, lambda f, c, t: write(f, c | fields, t), told or next(iter(fields)))


def _without(name: str, field: str, told: str) -> Case:
  return Case(name, lambda f, c, t: write(f, {k: c[k] for k in c if k != field}, t), told)


def _text(name: str, edit: Callable[[str], str | bytes], told: str) -> Case:
  return Case(name, lambda f, c, t: write(f, c, t, text=edit(json.dumps(c))), told)


def _data(name: str, edit: Callable[[bytes], bytes], told: str = WEIGHTS) -> Case:
  return Case(name, lambda f, c, t: write(f, c, t, data=edit(save(t))), told)


def _tensors(name: str, edit: Callable[[dict], object], told: str) -> Case:
  def make(folder, config, tensors):
    edit(tensors)
    write(folder, config, tensors)

  return Case(name, make, told)


ENDLESS = ["(a+)+$", "(.*)*x", "(.|.)*y", "((a?){50}){50}z", "(.*.*.*.*.*.*.*.*)*z", "([a-z.]+)*7",
           "(.+)+(.+)+(.+)+!", "((((.*)*)*)*)*k9", "(?=(.+)+$)(.*)*q", "(a|a|aa|.)*#"]  # fmt: skip
BROKEN = ["(", "[", "*a", "(?P<a>", "a{2,1}", "(?P<n>a)(?P<n>b)", "a**", "\\", "(?z)", ")"]
REFUSED = ["(?i)qkv", r"(.)\1", "(?<=a)b", "(?i:q)kv", "a" * 3000, "(" * 1900,
           "(" * 900 + ")" * 900, r"\bqkv", "(?>a+)", "a++",
           "(" * 180 + "a" + ")*" * 180]  # fmt: skip


def _configs() -> Iterator[Case]:
  for value in ("IA3", "LOHA", "ADALORA", "", 3, None, "lora", ["LORA"], {"a": 1}, "../LORA"):
    yield _fields(f"type {value}", peft_type=value)
  yield _without("no type", "peft_type", "peft_type is None")
  for value in (0, -1, -8, 10**9, 10**30, 1.5, True, "8", None, [4], {}, 3, 5, 2**20):
    yield _fields(
      f"r {value}", told="rank" if value in (3, 5, 2**20) and value is not True else "r is", r=value
    )
  for value in ("x", None, [], True, {}, "NaN", "8", 10**39, -(10**60)):
    yield _fields(f"alpha {value}", told="lora_alpha is", lora_alpha=value)
  for token in ("NaN", "Infinity", "-Infinity", "1e400", "-1e999", "1" * 5000):
    for field in ("lora_alpha", "r"):
      edit = _replaced(field, token)
      yield _text(f"{field} {token[:9]}", edit, "JSON" if token[-1] in "Ny" else CONFIG)
  for field in ("lora_alfa", "__class__", "auto_class", "trust_remote_code", "r ", "R", "ranks",
                "target_module", "\u0000", "../../etc/passwd", "x" * 10_000):  # fmt: skip
    yield _fields(
      f"field {field[:9]!r}", told="is a field that is not known", **{field: "os.system"}
    )
  for field in ("fan_in_fan_out", "megatron_config", "trainable_token_indices", "corda_config",
                "lora_ga_config", "alora_invocation_tokens", "use_qalora", "monteclora_config",
                "layer_replication", "lora_bias", "target_parameters", "use_bdlora",
                "arrow_config", "kasa_config", "ensure_weight_tying"):  # fmt: skip
    yield _fields(field, **{field: True})
  for value in (
    "pissa",
    "olora",
    "loftq",
    "corda",
    "pissa_niter_4",
    "lora_ga",
    1,
    0,
    [],
    "True",
  ):
    yield _fields(f"start {value}", init_lora_weights=value)
  for value in ("some", 3, None, [], "All", True, {}):
    yield _fields(f"bias {value}", bias=value)
  for field in ("use_dora", "use_rslora"):
    for value in ("yes", 1, 0, [], {}, 2.5):
      yield _fields(f"{field} {value}", told=f"{field} is", **{field: value})
  yield _fields("dora without lengths", told="lora_magnitude_vector", use_dora=True)


def _replaced(field: str, token: str) -> Callable[[str], str]:
  def edit(text: str) -> str:
    config = json.loads(text)
    config[field] = "TOKEN"
    return json.dumps(config).replace('"TOKEN"', token)

  return edit


def _names() -> Iterator[Case]:
  for value in ("", [], None, 5, [5], [""], {"a": 1}, "all-linear", [None], [["a"]], True):
    yield _fields(f"targets {value}", target_modules=value)
  for value in ("nothing", ["nothing"], "qkv", ["kv"], ["blocks"], ["blocks.0.attn.qkv"],
                ["blocks.7.attn.qkv"], ["../../qkv"], ["/etc/passwd"], ["*"], ["attn.qkv", "fc1"],
                ".*", r"blocks\..*", "[^q]*", *ENDLESS):  # fmt: skip
    told = "too many steps" if value == "" else "target_modules"
    yield _fields(f"matches {str(value)[:20]}", told=told, target_modules=value)
  for value in (*BROKEN, *REFUSED):
    yield _fields(f"regex {value[:9]}", told="target_modules has", target_modules=value)
    yield _fields(f"rank of {value[:9]}", told="rank_pattern has", rank_pattern={value: 2})
    yield _fields(f"alpha of {value[:9]}", told="alpha_pattern has", alpha_pattern={value: 2})
    yield _fields(f"saved {value[:9]}", told="modules_to_save has", modules_to_save=["head", value])
    yield _fields(f"without {value[:9]}", told="exclude_modules has", exclude_modules=value)
  for value in (["attn.qkv"], ".*", ["proj"], "blocks.*"):
    yield _fields(f"excluded {value}", told="exclude_modules is", exclude_modules=value)
  for value in (3, {"a": 1}, [1], [""]):
    yield _fields(f"odd exclusion {value}", exclude_modules=value)
  for value in ({"attn.qkv": 3}, {"qkv": 1}, {".*": 7}, {"(.*)*": 9}, {"^blocks.*": 2**20}):
    yield _fields(f"ranks {value}", told="rank", rank_pattern=value)
  for value in (
    {"x": -1},
    {"x": 0},
    {"x": "4"},
    {"x": None},
    {"x": 1.5},
    {"x": 10**12},
    [4],
    "x",
    3,
  ):
    yield _fields(f"odd ranks {value}", rank_pattern=value)
  for value in ({"x": "4"}, {"x": None}, {"x": 10**50}, [4], "x", 3, {"x": True}, {"x": []}):
    yield _fields(f"odd alphas {value}", alpha_pattern=value)
  for value in ([5], [], "1", [1.5], {"a": 0}, [True], ["0"], [-1], 7, [10**30]):
    if value:
      yield _fields(f"layers {value}", told="", layers_to_transform=value)
  yield _fields("pattern alone", told="layers_to_transform", layers_pattern="blocks")
  yield _fields(
    "no such list", told="target_modules", layers_to_transform=[0, 1], layers_pattern="x"
  )
  yield _fields("broken list", told="layers_pattern has", layers_to_transform=[0],
                layers_pattern="(")  # fmt: skip
  for value in (["nothing"], "head", [3], [""], ["head", "norm"], ["blocks.0"], [], None, 3):
    yield _fields(f"saves {value}", told="modules_to_save", modules_to_save=value)


def _json() -> Iterator[Case]:
  for n in (10_000, 200_000):
    yield _text(f"lists {n}", lambda text, n=n: "[" * n, CONFIG)
    yield _text(f"closed lists {n}", lambda text, n=n: "[" * n + "]" * n, CONFIG)
    yield _text(f"objects {n}", lambda text, n=n: '{"a":' * n + "1" + "}" * n, CONFIG)
    yield _text(
      f"deep field {n}", lambda text, n=n: f'{text[:-1]}, "x": {"[" * n}{"]" * n}}}', CONFIG
    )
  for key in ("r", "peft_type", "target_modules"):
    yield _text(f"twice {key}", lambda text, key=key: f'{text[:-1]}, "{key}": 4}}', "twice")
  for text in ("", "[]", "3", '"LORA"', "null", "{", "\x00", "{}{}", "<xml/>", "true", "{'r': 4}"):
    yield _text(f"text {text!r}", lambda _, text=text: text, CONFIG)
  yield _text("utf-16", lambda text: text.encode("utf-16-le")[1:], CONFIG)
  yield _text("bytes", lambda text: text.encode()[:-1] + b"\xff\xfe", CONFIG)
  yield _text("large", lambda text: text + " " * 17_000_000, CONFIG)
  for cut in range(1, 12):
    yield _text(f"cut {cut}", lambda text, cut=cut: text[: len(text) * cut // 13], CONFIG)


def _keys() -> Iterator[Case]:
  for key in (f"{QKV}.lora_A.weight", f"{QKV}.lora_B.weight", f"{START}head.weight",
              f"{START}head.bias", f"{START}patch_embed.proj.lora_A.weight"):  # fmt: skip
    yield _tensors(f"no {key}", lambda t, key=key: t.pop(key), key.split(".")[-2 - ("lora" in key)])
  for name, told in (
    ("../../etc/passwd", "does not begin"), ("x", "does not begin"), ("", "does not begin"),
    (f"{START}", "not known"), (f"{START}../a.lora_A.weight", "no layer"),
    (f"{START}blocks.9.attn.qkv.lora_A.weight", "no layer"),
    (f"{QKV}.lora_A.default.weight", "not known"), (f"{QKV}.lora_embedding_A", "not known"),
    (f"{QKV}.lora_B.bias", "not known"),
    (f"{QKV}.lora_magnitude_vector", "lora_magnitude_vector"), (f"{QKV}.bias", "bias"),
    (f"{QKV}.weight", "modules_to_save"), (f"{START}norm.weight", "modules_to_save"),
    (f"{START}norm.running_mean", "not known"), (f"{START}fc.weight", "no layer"),
    (f"{START}blocks.0.mlp.fc1.lora_A.weight", "target_modules"),
    (f"{START}cls_token", "not known"),
    (f"base_model.{QKV}.lora_A.weight", "begin"), (QKV[11:] + ".lora_A.weight", "begin"),
    (f"{START}{'a.' * 5000}lora_A.weight", "no layer"), (f"{START}\x00.lora_A.weight", "no layer"),
  ):  # fmt: skip
    yield _tensors(f"key {name[:40]!r}", _added(name), told)
  yield _tensors("no tensors", lambda t: t.clear(), "no tensor")
  yield _tensors("a head alone", lambda t: [t.pop(k) for k in list(t) if "lora" in k], "lora_A")


def _added(name: str) -> Callable[[dict], None]:
  return lambda tensors: tensors.update({name: np.zeros((4, 16), np.float32)})


def _shapes(rng: random.Random) -> Iterator[Case]:
  edits = {
    "transposed": lambda a: a.T, "an axis more": lambda a: a[None], "flat": lambda a: a.reshape(-1),
    "empty": lambda a: a[:0], "one more": lambda a: np.concatenate([a, a[:1]]),
    "one less": lambda a: a[:-1], "scalar": lambda a: a.reshape(-1)[0].reshape(()),
    "half": lambda a: a[..., : a.shape[-1] // 2], "twice": lambda a: np.concatenate([a, a], -1),
  }  # fmt: skip
  names = [f"{QKV}.lora_A.weight", f"{QKV}.lora_B.weight", f"{START}head.weight",
           f"{START}patch_embed.proj.lora_A.weight", f"{START}patch_embed.proj.lora_B.weight",
           f"{START}head.bias"]  # fmt: skip
  for name in names:
    for what, edit in edits.items():
      if what in ("transposed", "flat") and name.endswith("bias"):
        continue
      if what == "half" and name.endswith("proj.lora_B.weight"):
        continue
      told = name.removeprefix(START).split(".lora")[0].split(".weight")[0].split(".bias")[0]
      yield _tensors(f"{what} {name[-22:]}", _edited(name, edit), told)
    for dtype in ("int8", "int64", "bool", "uint8", "int32"):
      yield _tensors(f"{dtype} {name[-22:]}", _edited(name, lambda a, d=dtype: (a * 9).astype(d)),
                     "allowed: floats")  # fmt: skip
    for value in (np.nan, np.inf, -np.inf):
      yield _tensors(f"{value} {name[-22:]}", _edited(name, _filled(value, rng)), "not finite")
  yield _tensors("float64 that overflows", _edited(names[0], lambda a: a.astype("f8") + 1e300),
                 "not finite")  # fmt: skip


def _edited(name: str, edit: Callable) -> Callable[[dict], None]:
  def change(tensors):
    tensors[name] = np.ascontiguousarray(edit(tensors[name]))

  return change


def _filled(value: float, rng: random.Random) -> Callable:
  def edit(array):
    array = array.copy()
    array.reshape(-1)[rng.randrange(array.size)] = value
    return array

  return edit


def _files(rng: random.Random, marker: pathlib.Path) -> Iterator[Case]:
  for protocol in range(6):
    payload = pickle.dumps(Marker(marker), protocol=protocol)
    yield _data(f"pickle {protocol}", lambda data, payload=payload: payload, "executed")
  yield _data("zip of torch", lambda data: _torch_zip(pickle.dumps(Marker(marker))), "executed")
  header = json.dumps(
    {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
  ).encode()
  for name, data in {
    "empty": b"", "zeros": b"\0" * 100, "text": b"import os; os.mkdir('x')", "lies": header,
    "huge header": (2**40).to_bytes(8, "little") + b"{}",
    "huge tensor": len(header).to_bytes(8, "little") + header,
    "deep header": (200_000).to_bytes(8, "little") + b'{"a":' * 40_000,
    "no header": (0).to_bytes(8, "little"), "list header": (2).to_bytes(8, "little") + b"[]",
    "npz": b"PK\x03\x04" + b"\0" * 60, "negative": b"\xff" * 8 + b"{}",
  }.items():  # fmt: skip
    yield _data(name, lambda _, data=data: data)
  for what, target in (("zero", "/dev/zero"), ("password", "/etc/passwd"), ("itself", WEIGHTS)):
    for file in (CONFIG, WEIGHTS):
      yield Case(f"link to {what} {file}", _linked(file, target), file)
  for file in (CONFIG, WEIGHTS):
    yield Case(f"no {file}", _left_out(file, lambda path: None), file)
    yield Case(f"a folder {file}", _left_out(file, lambda path: path.mkdir()), file)
    yield Case(f"a pipe {file}", _left_out(file, os.mkfifo), file)
  yield Case("pickle beside", _left_out(WEIGHTS, lambda path: path.with_name("adapter_model.bin")
             .write_bytes(pickle.dumps(Marker(marker)))), "pickle")  # fmt: skip
  yield Case("no folder", lambda f, c, t: None, "no folder")
  while True:
    share = rng.random()
    yield _data(f"cut at {share:.4f}", lambda data, share=share: data[: int(len(data) * share)])


def _torch_zip(payload: bytes) -> bytes:
  import io

  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    archive.writestr("archive/data.pkl", payload)
  return buffer.getvalue()


def _linked(file: str, target: str) -> Callable:
  return _left_out(file, lambda path: path.symlink_to(target))


def _left_out(file: str, then: Callable) -> Callable:
  def make(folder, config, tensors):
    write(folder, config, tensors)
    (folder / file).unlink()
    then(folder / file)

  return make


def cases(marker: pathlib.Path) -> list[Case]:
  """All of them; unpickling one would make the folder `marker`."""
  rng = random.Random(0)
  found = [*_configs(), *_names(), *_json(), *_keys(), *_shapes(rng)]
  files = _files(rng, marker)
  return found + [next(files) for _ in range(NUMBER - len(found))]
