"""EfficientNet-Lite0 against torch: inference, a full step, the last three blocks.

  python benchmarks/train_step.py

Same network (the torch definition is the package efficientnet-lite-pytorch), batch, image size and
threads. torch runs in both memory layouts, with the stride-1 convolutions padding inside
`conv2d`, and the faster of the two is the peer. The runs are interleaved; a ratio is the median
over the rounds of ours divided by torch's in the same round. Two forms of the last row: torch as it
is written (frozen prefix in eval mode, without gradient, run every step), and torch with the
prefix's output cached by hand. Both run in one process with one setting of the allocator
(`models.host_memory`), which `main.py` makes too.
"""

import argparse
from collections.abc import Callable, Mapping
import datetime
import json
import os
import platform
import statistics
import time

import idle
import jax
import jax.numpy as jnp
import numpy as np

from subtune_jax import methods, models
from subtune_jax.data import preprocess
from subtune_jax.models import host_memory
from subtune_jax.training import evaluate, step, trainable_split
from subtune_jax.training import mesh as mesh_lib

CLASSES = 45
LAST = ("block14", "block15", "top")
RATE = 1e-3
PREPROCESSING = preprocess.Preprocessing(mean=(127.0,), std=(128.0,))
Timed = Callable[[], None]


def ours(batch: int, size: int) -> dict[str, Timed]:
  """Our inference and steps, compiled."""
  model = models.create("efficientnet_lite0", num_classes=CLASSES)
  variables = model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
  options = {"preprocessing": PREPROCESSING, "batch_size": batch, "mesh": mesh}
  sgd = {"epochs": 1, "optimizer": "sgd", "momentum": 0.9, "schedule": "constant"}
  full = methods.full_fine_tuning(RATE, **sgd)[0]
  last = methods.sub_tuning(LAST, RATE, **sgd)[0]
  forward = evaluate.forward_program(model, None, None, PREPROCESSING)
  resident, batch_of_images = mesh_lib.put((variables, images), mesh)
  cached = evaluate.run_units(model, variables, images, stop=LAST[0], **options)
  return {
    "inference": lambda: jax.block_until_ready(forward(resident, batch_of_images)),
    "full fine-tuning step": _our_step(model, variables, full, images, None, mesh),
    "last three blocks": _our_step(model, variables, last, cached, LAST[0], mesh),
  }


def _our_step(model, variables, stage, x, start, mesh) -> Timed:
  plan = trainable_split.make_plan(model, variables, stage)
  spec = step.StepSpec(model, plan, stage, 1, PREPROCESSING, None, start)
  moving, fixed = trainable_split.split_variables(variables, plan)
  state = mesh_lib.put(step.create_train_state(spec, moving), mesh)
  fixed = mesh_lib.put(fixed, mesh)
  n = len(x)
  data = mesh_lib.put({"x": x, "labels": jnp.zeros(n, jnp.int32)}, mesh)
  indices = mesh_lib.put(jnp.arange(n), mesh)
  view = mesh_lib.put({"seed": np.int32(0), "epoch": np.int32(0)}, mesh)
  compiled, _ = step.compile_step(spec, mesh, state, fixed, None, data, indices, view)

  def run():
    nonlocal state
    state, metrics = compiled(state, fixed, None, data, indices, view)
    jax.block_until_ready(metrics)

  return run


def _torch_network(torch, channels_last: bool):
  import torch_search

  net = torch_search.efficientnet(CLASSES)
  return net.to(memory_format=torch.channels_last) if channels_last else net


def theirs(torch, batch: int, size: int, channels_last: bool) -> dict[str, Timed]:
  """torch's inference and steps."""
  layout = torch.channels_last if channels_last else torch.contiguous_format
  x = torch.randn(batch, 3, size, size).contiguous(memory_format=layout)
  labels = torch.zeros(batch, dtype=torch.long)
  eval_net, full_net, last_net, cached_net = (
    _torch_network(torch, channels_last) for _ in range(4)
  )
  eval_net.eval()

  def inference():
    with torch.inference_mode():
      eval_net(x)

  optimizer = _sgd(torch, full_net.parameters())

  def full_step():
    full_net.train()
    optimizer.zero_grad(set_to_none=True)
    torch.nn.functional.cross_entropy(full_net(x), labels).backward()
    optimizer.step()

  last, cached = _TorchTail(torch, last_net), _TorchTail(torch, cached_net)
  kept = cached.prefix(x)
  return {
    "inference": inference,
    "full fine-tuning step": full_step,
    "last three blocks": lambda: last.step(last.prefix(x), labels),
    "last three blocks, torch's prefix cached too": lambda: cached.step(kept, labels),
  }


def _sgd(torch, parameters):
  return torch.optim.SGD(parameters, lr=RATE, momentum=0.9)


class _TorchTail:
  """The network cut before block 14: a frozen prefix, and the rest that is trained."""

  def __init__(self, torch, net):
    self.torch, self.net = torch, net.eval()
    self.first = len(net._blocks) - 2
    self.tail = [*net._blocks[self.first :], net._conv_head, net._bn1, net._fc]
    for p in net.parameters():
      p.requires_grad_(False)
    for module in self.tail:
      module.train()
      for p in module.parameters():
        p.requires_grad_(True)
    self.optimizer = _sgd(torch, [p for p in net.parameters() if p.requires_grad])

  def prefix(self, x):
    with self.torch.no_grad():
      x = self.net._swish(self.net._bn0(self.net._conv_stem(x)))
      for block in self.net._blocks[: self.first]:
        x = block(x)
    return x

  def step(self, x, labels):
    net = self.net
    self.optimizer.zero_grad(set_to_none=True)
    for block in net._blocks[self.first :]:
      x = block(x)
    x = net._swish(net._bn1(net._conv_head(x)))
    x = net._fc(x.mean((2, 3)))
    self.torch.nn.functional.cross_entropy(x, labels).backward()
    self.optimizer.step()


def processor() -> str:
  """Name of the processor."""
  try:
    with open("/proc/cpuinfo") as f:
      return next(line.split(":")[1].strip() for line in f if line.startswith("model name"))
  except (OSError, StopIteration):
    return platform.processor() or "unknown"


def measure(runs: Mapping[str, Timed], rounds: int, least_seconds: float) -> dict[str, list[float]]:
  """Seconds per call of each function in each round, one after the other."""
  repeats = {}
  for name, run in runs.items():
    run()
    begin = time.perf_counter()
    run()
    repeats[name] = max(1, round(least_seconds / (time.perf_counter() - begin)))
  seconds = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      begin = time.perf_counter()
      for _ in range(repeats[name]):
        run()
      seconds[name].append((time.perf_counter() - begin) / repeats[name])
  return seconds


def table(seconds: Mapping[tuple[str, str], list[float]], batch: int) -> list[dict]:
  """A row per kind of work: images/s of ours and of torch in its faster layout, and the ratio."""
  rows = []
  kinds = dict.fromkeys(kind for who, kind in seconds if who.startswith("torch"))
  for kind in kinds:
    layouts = {who: seconds[who, kind] for who, k in seconds if k == kind and who != "ours"}
    peer = min(layouts, key=lambda who: statistics.median(layouts[who]))
    mine = seconds["ours", kind.split(",")[0]]
    ratios = [t / m for t, m in zip(layouts[peer], mine, strict=True)]
    rows.append({
      "what": kind, "ours": batch / statistics.median(mine),
      "torch": batch / statistics.median(layouts[peer]), "layout": peer.removeprefix("torch "),
      "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
    })  # fmt: skip
  return rows


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--size", type=int, default=64, help="pixels")
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--json", help="also write the rows to this file")
  idle.add_option(parser)
  arguments = parser.parse_args()
  load = idle.load(arguments.force)
  kept = host_memory.keep_freed()  # for both: they share the process
  import torch

  threads = len(os.sched_getaffinity(0))
  torch.set_num_threads(threads)
  runs = {("ours", k): f for k, f in ours(arguments.batch, arguments.size).items()}
  for name, channels_last in (("torch NCHW", False), ("torch channels_last", True)):
    made = theirs(torch, arguments.batch, arguments.size, channels_last)
    runs |= {(name, k): f for k, f in made.items()}
  rows = table(measure(runs, arguments.rounds, 0.5), arguments.batch)
  facts = {
    "date": datetime.date.today().isoformat(), "processor": processor(),
    "threads": threads, "load at start": round(load, 2), "forced": arguments.force,
    "freed memory kept": kept,
    "batch": arguments.batch, "pixels": arguments.size, "python": platform.python_version(),
    "jax": jax.__version__, "torch": torch.__version__,
  }  # fmt: skip
  print(", ".join(f"{k} {v}" for k, v in facts.items()))
  print(f"{'images/s':<46}{'ours':>8}{'torch':>8}  {'layout':<14}{'ratio':>6}  (least, most)")
  for row in rows:
    print(f"{row['what']:<46}{row['ours']:>8.0f}{row['torch']:>8.0f}  {row['layout']:<14}"
          f"{row['ratio']:>6.2f}  ({row['low']:.2f}, {row['high']:.2f})")  # fmt: skip
  if arguments.json:
    with open(arguments.json, "w") as f:
      json.dump({"facts": facts, "rows": rows}, f, indent=1)


if __name__ == "__main__":
  main()
