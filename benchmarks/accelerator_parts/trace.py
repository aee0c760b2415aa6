"""A profiler trace of one training step of ViT-B/16 in bfloat16: which kernels take the time."""

import collections
from collections.abc import Iterator
import pathlib
import tempfile
from typing import Any

import jax

from benchmarks.accelerator_parts import measuring, speed
from benchmarks.accelerator_parts import programs as programs_lib

_JOB = speed.Job("vit_b16")
_DEVICE_LINES = ("Stream", "XLA Ops")  # of a GPU, of a TPU; the others sum these up
_KERNELS = 15  # rows; the others are summed


def programs(scale: programs_lib.Scale) -> Iterator[programs_lib.Program]:
  """The step."""
  yield _JOB.program(scale, scale.batches[-1])


def run(scale: programs_lib.Scale, log: measuring.Log) -> None:
  """A row per kernel, the longest first; the trace itself is thrown away."""
  program = next(programs(scale))
  calls = measuring.Compiled(program).run()
  calls(2)
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      calls(1)
    seconds = kernels(pathlib.Path(folder))
  total = sum(seconds.values())
  if not total:
    raise ValueError("the trace names no kernel")
  top = seconds.most_common(_KERNELS)
  rest = [("all others", total - sum(t for _, t in top))] if len(seconds) > len(top) else []
  for name, taken in [*top, *rest]:
    log.add(kernel=name[:90], **{"ms": 1e3 * taken, "share": taken / total})
  log.add(kernel=f"all, batch {program.images}", **{"ms": 1e3 * total, "share": 1.0})


def kernels(folder: pathlib.Path) -> collections.Counter[str]:
  """Seconds by kernel in the traces below a folder; on CPU, by operation of the program."""
  found: collections.Counter[str] = collections.Counter()
  for path in folder.rglob("*.xplane.pb"):
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    for line in _lines(planes):
      for event in line.events:
        if line.name.startswith(_DEVICE_LINES) or any(k == "hlo_op" for k, _ in event.stats):
          found[event.name] += event.duration_ns / 1e9
  return found


def _lines(planes: list[Any]) -> list[Any]:
  """The lines of a device whose events do not cover each other; on CPU, all."""
  lines = [line for p in planes if p.name.startswith("/device:") for line in p.lines]
  for beginning in _DEVICE_LINES:
    found = [line for line in lines if line.name.startswith(beginning)]
    if found:
      return found
  return [line for p in planes for line in p.lines]
