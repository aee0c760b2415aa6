"""Reading a ResNet-50's weights against torch: time, and memory.

  python benchmarks/load_weights.py

The file is a state dict with torchvision's names and shapes, which `torch.save` writes. torch reads
it with `torch.load(weights_only=True)` and `load_state_dict` into a module that is there already;
ours is `load_pretrained` into a model that is there already: hashed, parsed with its checksums
verified, recognised, checked for values that are not finite, transposed. The runs are interleaved;
a ratio is torch's time divided by ours in the same round. The peak memory of each is that of a
process of its own, above what it had before it opened the file.
"""

import argparse
from collections.abc import Callable
import datetime
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import idle
import jax

from subtune_jax import models, weights

_THREADS = len(os.sched_getaffinity(0))
_BLOCKS = (3, 4, 6, 3)
_MIB = 2**20


def shapes() -> dict[str, tuple[int, ...]]:
  """Returns the 320 names and shapes of torchvision's ResNet-50."""
  found = _conv_bn("conv1", "bn1", 64, 3, 7)
  channels = 64
  for stage, blocks in enumerate(_BLOCKS):
    width = 64 * 2**stage
    for block in range(blocks):
      prefix = f"layer{stage + 1}.{block}."
      found |= _conv_bn(f"{prefix}conv1", f"{prefix}bn1", width, channels, 1)
      found |= _conv_bn(f"{prefix}conv2", f"{prefix}bn2", width, width, 3)
      found |= _conv_bn(f"{prefix}conv3", f"{prefix}bn3", 4 * width, width, 1)
      if block == 0:
        down = f"{prefix}downsample."
        found |= _conv_bn(f"{down}0", f"{down}1", 4 * width, channels, 1)
      channels = 4 * width
  return found | {"fc.weight": (1000, channels), "fc.bias": (1000,)}


def _conv_bn(conv: str, bn: str, out: int, inputs: int, size: int) -> dict[str, tuple[int, ...]]:
  vectors = {f"{bn}.{k}": (out,) for k in ("weight", "bias", "running_mean", "running_var")}
  counter = {f"{bn}.num_batches_tracked": ()}
  return {f"{conv}.weight": (out, inputs, size, size)} | vectors | counter


def _is_counter(name: str) -> bool:
  return name.endswith("num_batches_tracked")


def _write(path: pathlib.Path) -> None:
  """Writes random weights as torch does."""
  import torch

  generator = torch.Generator().manual_seed(0)
  state = {
    name: torch.tensor(0) if _is_counter(name) else torch.randn(shape, generator=generator)
    for name, shape in shapes().items()
  }
  torch.save(state, path)


def _module():
  """Returns a module of nothing but the parameters and buffers."""
  import torch

  root = torch.nn.Module()
  for name, shape in shapes().items():
    *path, leaf = name.split(".")
    node = root
    for part in path:
      if part not in node._modules:
        node.add_module(part, torch.nn.Module())
      node = node._modules[part]
    if _is_counter(leaf) or leaf.startswith("running_"):
      node.register_buffer(leaf, torch.zeros(shape, dtype=torch.long if not shape else None))
    else:
      node.register_parameter(leaf, torch.nn.Parameter(torch.zeros(shape)))
  return root


def _ours(path: pathlib.Path) -> Callable[[], None]:
  jax.block_until_ready(jax.device_put(0.0))  # starts the backend
  model = models.create("resnet50", num_classes=1000)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jax.numpy.float32)
  jax.eval_shape(model.init, jax.random.key(0), images)  # what tracing needs is not the file's

  def run():
    loaded = weights.load_pretrained(path, model, preprocessing="imagenet")
    jax.block_until_ready(loaded.variables)

  return run


def _theirs(path: pathlib.Path) -> Callable[[], None]:
  import torch

  torch.set_num_threads(_THREADS)
  module = _module()
  return lambda: module.load_state_dict(torch.load(path, weights_only=True))


_RUNS = {"ours": _ours, "torch": _theirs}


def _memory(field: str) -> int:
  """Returns a field of this process's memory, in bytes."""
  with open("/proc/self/status") as f:
    return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))


def _peak(who: str, path: pathlib.Path) -> int:
  """Returns the growth of the peak memory of one run, in this process."""
  run = _RUNS[who](path)
  with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # the peak starts from here
  before = _memory("VmRSS")
  run()
  return _memory("VmHWM") - before


def _peak_in_process(who: str, path: pathlib.Path) -> int:
  command = [sys.executable, __file__, "--peak", who, "--file", str(path)]
  return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _measure(path: pathlib.Path, rounds: int) -> dict[str, list[float]]:
  """Returns the seconds of each in each round, one after the other."""
  runs = {who: make(path) for who, make in _RUNS.items()}
  seconds = {who: [] for who in runs}
  for _ in range(rounds + 1):
    for who, run in runs.items():
      begin = time.perf_counter()
      run()
      seconds[who].append(time.perf_counter() - begin)
  return {who: times[1:] for who, times in seconds.items()}  # the first one warms up


def _report(path: pathlib.Path, rounds: int, facts: dict[str, object]) -> None:
  import torch

  facts |= {"jax": jax.__version__, "torch": torch.__version__}
  print(", ".join(f"{k} {v}" for k, v in facts.items()))
  peaks = {who: _peak_in_process(who, path) for who in _RUNS}
  seconds = _measure(path, rounds)
  size = path.stat().st_size
  for who, times in seconds.items():
    print(f"{who:<6} {1000 * statistics.median(times):6.1f} ms ({1000 * min(times):.1f} to "
          f"{1000 * max(times):.1f}); peak memory +{peaks[who] / _MIB:.0f} MiB, "
          f"{peaks[who] / size:.2f} times the file")  # fmt: skip
  ratios = [t / o for t, o in zip(seconds["torch"], seconds["ours"], strict=True)]
  print(f"torch's time / ours {statistics.median(ratios):.2f} ({min(ratios):.2f}, "
        f"{max(ratios):.2f})")  # fmt: skip


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--rounds", type=int, default=7)
  idle.add_option(parser)
  parser.add_argument("--peak", choices=sorted(_RUNS), help=argparse.SUPPRESS)
  parser.add_argument("--file", type=pathlib.Path, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.peak:
    print(_peak(arguments.peak, arguments.file))
    return
  load = idle.load(arguments.force)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "resnet50.pth"
    _write(path)
    facts = {
      "date": datetime.date.today().isoformat(), "threads": _THREADS,
      "load at start": round(load, 2), "forced": arguments.force,
      "python": platform.python_version(), "MiB": round(path.stat().st_size / _MIB, 1),
    }  # fmt: skip
    _report(path, arguments.rounds, facts)


if __name__ == "__main__":
  main()
