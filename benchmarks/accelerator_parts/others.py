"""The other networks in bfloat16, and all of them in float32."""

from collections.abc import Iterator

from benchmarks.accelerator_parts import measuring, speed
from benchmarks.accelerator_parts import programs as programs_lib

_SMALLER = ("vit_s16", "convnext_tiny", "efficientnet_lite0")
GROUPS = (
  tuple(speed.Job(name, torch=True) for name in _SMALLER),
  tuple(speed.Job(name, dtype="float32", torch=True) for name in ("vit_b16", "resnet50")),
  tuple(speed.Job(name, "inference", torch=True) for name in _SMALLER),
  tuple(speed.Job(name, "inference", "float32") for name in ("vit_b16", "resnet50")),
  tuple(speed.Job(name, dtype="float32") for name in _SMALLER),
  tuple(speed.Job(name, "inference", "float32") for name in _SMALLER),
)


def programs(scale: programs_lib.Scale) -> Iterator[programs_lib.Program]:
  """Every program of the part, at the largest batch."""
  return speed.programs(scale, GROUPS)


def run(scale: programs_lib.Scale, log: measuring.Log) -> None:
  """A row per job."""
  speed.run(scale, log, GROUPS)
