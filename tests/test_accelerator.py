"""benchmarks/accelerator.py: every part runs on a CPU, and its programs are lowered for CUDA."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from benchmarks import accelerator, accelerator_parts
from benchmarks.accelerator_parts import (
  measuring,
  parity,
  peaks,
  programs,
  runner,
  search,
  speed,
  torch_peer,
  trace,
)
from tests import blocked, marks

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = "jax,jaxlib,flax,optax,orbax-checkpoint,numpy,pillow"
ENDLESS = 1e12  # a deadline
_SLOW = ("others", "parity", "subtuning", "train")


@pytest.mark.parametrize(
  "name",
  [pytest.param(n, marks=[pytest.mark.slow] * (n in _SLOW)) for n in accelerator_parts.NAMES],
)
def test_every_program_of_a_part_lowers_for_cuda_at_full_size(name, monkeypatch):
  cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
  made = list(accelerator_parts.load(name).programs(programs.FULL))
  assert len({program.name for program in made}) == len(made) > 0
  for program in made:
    text = program.lowered("cuda").as_text()
    assert "stablehlo.dot_general" in text or "stablehlo.convolution" in text, program.name
    assert ("__cudnn$fmha" in text) == ("cudnn" in program.name), program.name
    if name != "parity":  # its small images are no image of the full size
      assert "x224x224x3xui8" in text or "cached" in program.name, program.name
    if "float32" in program.name:
      assert "bf16" not in text, program.name
    else:
      assert "bf16" in text, program.name


def bare(*arguments: str) -> subprocess.CompletedProcess:
  """accelerator.py where jax, flax, optax, orbax, numpy and pillow are all there is."""
  command = [
    sys.executable,
    ROOT / "tests/blocked.py",
    PACKAGES,
    ROOT / "benchmarks/accelerator.py",
  ]
  return subprocess.run(
    [*command, "--tiny", *arguments], capture_output=True, text=True, check=False, cwd="/",
    env={k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")},
  )  # fmt: skip


def check_results(done: subprocess.CompletedProcess, folder: pathlib.Path, parts: list[str]):
  assert done.returncode == 0, done.stderr
  record = json.loads((folder / "accelerator_cpu.json").read_text())
  assert list(record["parts"]) == parts
  assert record["facts"]["jax"] == jax.__version__
  assert "torch" not in done.stderr
  page = (folder / "accelerator_cpu.md").read_text()
  for name, part in record["parts"].items():
    assert f"## {name}" in page
    assert part["rows"]
    assert part["error"] is None
    for row in part["rows"]:
      if row.get("attention") == "cudnn":
        assert row["error"] == "needs an NVIDIA GPU"
      else:
        assert "error" not in row, row
        assert row.get("peer") in (None, "MissingPeerError: torch is not installed")
  assert sorted(path.name for path in folder.iterdir()) == [
    "accelerator_cpu.json",
    "accelerator_cpu.md",
  ]


@pytest.mark.slow
def test_parts_run_with_few_packages(tmp_path):
  done = bare("--parts=trace,search", f"--out={tmp_path}")
  check_results(done, tmp_path, ["search", "trace"])


@pytest.mark.slow
def test_every_part_runs_with_few_packages(tmp_path):
  done = bare(f"--out={tmp_path}")
  check_results(done, tmp_path, list(accelerator_parts.NAMES))


def test_packages_that_are_not_declared_are_blocked():
  blocker = blocked.Blocker(blocked.needed(PACKAGES.split(",")))
  for name in ("tensorflow", "clu.metrics", "ml_collections", "matplotlib", "jinja2", "tqdm"):
    with pytest.raises(ModuleNotFoundError):
      blocker.find_spec(name, None)
  for name in ("jax", "numpy.linalg", "PIL", "scipy", "dataclasses", "subtune_jax"):
    assert blocker.find_spec(name, None) is None


def test_the_wheels_are_all_that_the_packages_need_beside_jax():
  text = (ROOT / "scripts/accelerator_wheels.sh").read_text()
  fetched = set(map(blocked.normal, re.findall(r"[\w-]+", text.split("--dest .wheels")[1])))
  missing = blocked.needed(PACKAGES.split(",")) - blocked.needed(["jax"]) - fetched
  assert missing == set()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--tiny", "--parts=trian"], "'trian'; parts: parity, train, "),
    (["--tiny", "--seconds=0"], "--seconds is 0.0"),
    ([], "no accelerator"),
  ],
)
def test_wrong_arguments(arguments, message, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["accelerator.py", *arguments])
  monkeypatch.setattr(sys, "path", list(sys.path))
  monkeypatch.setattr(os, "environ", dict(os.environ))
  assert accelerator.main() == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1


def test_a_failure_is_recorded_and_the_others_go_on(tmp_path, monkeypatch, capsys):
  def wrong():
    raise ValueError("a | b\nc")

  def first(scale, log):
    log.add(what="one", n=3, share=0.123456, bad=float("nan"))
    log.attempt({"what": "two"}, wrong)
    assert "error" not in json.loads((tmp_path / "accelerator_cpu.json").read_text())["parts"][
      "train"]["rows"][0]  # fmt: skip
    log.attempt({"what": "three"}, lambda: log.add(what="three"))
    raise KeyError("end")

  def second(scale, log):
    log.deadline = 0.0
    log.attempt({"what": "four"}, lambda: log.add(what="never"))

  runs = {"train": first, "trace": second}
  monkeypatch.setattr(
    accelerator_parts, "load", lambda n: types.SimpleNamespace(run=runs[n], __doc__="It.")
  )
  record = runner.run(list(runs), programs.SMALL, 10, tmp_path, "the command")
  assert [row.get("error") for row in record["parts"]["train"]["rows"]] == [
    None, "ValueError: a | b c", None
  ]  # fmt: skip
  assert record["parts"]["trace"]["rows"][0]["error"] == "not begun: the time was over"
  assert runner.failures(record) == ["train: KeyError: 'end'"]
  page = (tmp_path / "accelerator_cpu.md").read_text()
  assert "| one | 3 | 0.123 | nan |  |" in page
  assert "ValueError: a \\| b c |" in page
  assert json.loads((tmp_path / "accelerator_cpu.json").read_text()) == record
  assert "train ended early" in capsys.readouterr().err


def test_parity_by_hand():
  expected = {"logits": np.array([1.0, -4.0]), "loss": 2.0, "update": np.array([3.0, 4.0])}
  found = {"logits": np.array([1.5, -4.0]), "loss": 1.9, "update": np.array([3.0, 3.5])}
  differences = parity.differences(found, expected)
  assert differences == pytest.approx({"logits": 0.125, "loss": 0.05, "update": 0.1})
  assert not parity.within(differences, "bfloat16")
  assert parity.within(dict.fromkeys(differences, 1e-3), "bfloat16")
  assert not parity.within(dict.fromkeys(differences, float("nan")), "bfloat16")
  row = {"network": "n", "dtype": "bfloat16", "within": False}
  record = {"parts": {"parity": {"error": None, "rows": [row]}}}
  assert runner.failures(record) == ["parity: n in bfloat16 is beyond the tolerance"]


def test_extrapolation_by_hand():
  names, seconds = ("a", "b", "c", "d", "e"), {"a": 4.0, "e": 1.0}
  assert search.extrapolated(names, ("c",), seconds) == pytest.approx(5 * (4 + 3 + 2 + 1))


def test_the_share_of_the_peak_is_that_of_the_literature(monkeypatch):
  """ViT-B/16 takes 17.6 GMACs an image; 1,000 images/s in training are 105.5 TFLOP/s."""
  assert peaks.peak("NVIDIA H100 80GB HBM3", "bfloat16") == 989.4e12
  assert peaks.peak("NVIDIA H200", "float32") == 494.7e12
  assert peaks.peak("Tesla T4", "bfloat16") is None
  assert peaks.peak("NVIDIA L40S", "bfloat16") is None
  assert peaks.peak("cpu", "float32") is None
  monkeypatch.setattr(peaks, "peak", lambda kind, dtype: 1e15)
  job = speed.Job("vit_b16", attention="cudnn")
  assert speed.share_of_peak(programs.FULL, job, 1000.0) == pytest.approx(0.1055, rel=0.01)
  job = speed.Job("vit_b16", "inference")
  assert speed.share_of_peak(programs.FULL, job, 1000.0) == pytest.approx(0.0352, rel=0.01)


class _Fake(measuring.Compiled):
  """Runs out of memory with more than 4 images."""

  def __init__(self, program):
    self.program, self.seconds = program, 1.0

  @property
  def memory_bytes(self):
    return None

  def run(self):
    def calls(count):
      if self.program.images > 4:
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    return calls


def test_the_next_batch_is_tried_where_memory_runs_out(monkeypatch):
  monkeypatch.setattr(measuring, "Compiled", _Fake)
  groups = [[speed.Job("vit_s16", "inference"), speed.Job("resnet50", "inference")]]
  for batches, expected in (((8, 4), 4), ((4, 2), 4)):
    scale = dataclasses.replace(programs.SMALL, batches=batches)
    log = measuring.Log(ENDLESS)
    speed.run(scale, log, groups)
    assert [row["batch"] for row in log.rows] == [expected] * 2
  log = measuring.Log(ENDLESS)
  speed.run(dataclasses.replace(programs.SMALL, batches=(16, 8)), log, groups)
  assert all("RESOURCE_EXHAUSTED" in row["error"] for row in log.rows)


@pytest.mark.parametrize("name", marks.first(1, ["vit_b16", "resnet50", "convnext_tiny"]))
def test_a_run_trains_and_leaves_the_random_weights_as_they_were(name):
  spec = programs.spec_of(programs.SMALL.model(name, "float32"), programs.full_fine_tuning())
  program = programs.training("step", spec, 4)
  before = jax.tree.map(np.copy, programs.random_variables(spec.model))
  compiled = measuring.Compiled(program)
  compiled.run()(3)
  jax.tree.map(np.testing.assert_array_equal, before, programs.random_variables(spec.model))
  state, *rest = program.values()
  losses = []
  for _ in range(6):
    state, metrics = compiled.function(state, *rest)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < losses[0] < 5
  assert state.step == 6


def test_weights_are_the_same_for_every_dtype():
  models = [programs.SMALL.model("resnet50", dtype) for dtype in programs.DTYPES]
  trees = [programs.random_variables(model) for model in models]
  jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peer_in_torch_trains_or_infers(dtype):
  torch = pytest.importorskip("torch")

  def peer(work):
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4)
    pool = torch.nn.AdaptiveAvgPool2d(1)
    net = torch.nn.Sequential(*layers, pool, torch.nn.Flatten(), torch.nn.Linear(4, 5))
    return torch_peer.Peer(programs.SMALL, "small", work, dtype, 4, (net, "ours"))

  def weights(made):
    return {k: v.detach().clone() for k, v in made.net.state_dict().items()}

  for work, moves in (("training", True), ("inference", False)):
    made = peer(work)
    assert made.title == f"torch {torch.__version__}, ours"
    before = weights(made)
    made.run(2)
    assert made.warm_seconds > 0
    after = weights(made)
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved == (set(before) if moves else set())
    assert {v.dtype for v in after.values()} == {torch.float32, torch.int64}
    made.close()


def test_a_network_that_torch_lacks(monkeypatch):
  monkeypatch.setattr(torch_peer, "_installed", lambda name: None)
  with pytest.raises(torch_peer.MissingPeerError, match="install timm or torchvision"):
    torch_peer.network("vit_b16", 5, 32)
  with pytest.raises(torch_peer.MissingPeerError, match="torch is not installed"):
    torch_peer.Peers().get(programs.SMALL, "vit_b16", "training", "bfloat16", 4)


def test_a_trace_counts_each_kernel_once(tmp_path, monkeypatch):
  def line(name, **kernels):
    events = [types.SimpleNamespace(name=k, duration_ns=v, stats=()) for k, v in kernels.items()]
    return types.SimpleNamespace(name=name, events=events)

  def plane(name, *lines):
    return types.SimpleNamespace(name=name, lines=lines)

  ops = line("XLA Ops", gemm=4e9, add=1e9)
  gpu = plane("/device:GPU:0", line("Stream #7(Compute)", gemm=3e9), ops, line("Steps", step=9e9))
  second = line("Stream #8(Compute)", gemm=1e9, add=1e9)
  host = plane("/host:CPU", line("python", call=9e9))
  (tmp_path / "a.xplane.pb").touch()
  for planes, expected in (
    ([host, gpu, plane("/device:GPU:0", second)], {"gemm": 4.0, "add": 1.0}),
    ([host, plane("/device:TPU:0", ops, line("XLA Modules", jit_step=9e9))], {"gemm": 4, "add": 1}),
  ):
    data = types.SimpleNamespace(
      from_file=lambda path, planes=planes: types.SimpleNamespace(planes=planes)
    )
    monkeypatch.setattr(jax.profiler, "ProfileData", data)
    assert trace.kernels(tmp_path) == expected
