"""A profiler trace of one training step of ViT-B/16 in bfloat16: which kernels take the time."""

import collections
from collections.abc import Iterator
import pathlib
import tempfile

from benchmarks.accelerator_parts import measuring, speed
from benchmarks.accelerator_parts import programs as programs_lib
import jax

_JOB = speed.Job("vit_b16")
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
    devices = [p for p in planes if p.name.startswith("/device:")]
    for plane in devices or planes:
      for line in plane.lines:
        # A device's other lines ("XLA Modules", "Steps", ...) cover the same time again.
        if devices and not line.name.startswith(("Stream", "XLA Ops")):
          continue
        for event in line.events:
          if devices or any(key == "hlo_op" for key, _ in event.stats):
            found[event.name] += event.duration_ns / 1e9
  return found
