"""ViT-B/16 and ResNet-50 in bfloat16 against torch; attention, scan and donation."""

from collections.abc import Iterator

from benchmarks.accelerator_parts import measuring, speed
from benchmarks.accelerator_parts import programs as programs_lib

_VIT, _RESNET = "vit_b16", "resnet50"
GROUPS = (
  (
    speed.Job(_VIT, attention="xla", torch=True),
    speed.Job(_VIT, attention="cudnn", torch=True),
    speed.Job(_RESNET, torch=True),
  ),
  (
    speed.Job(_VIT, "inference", attention="xla", torch=True),
    speed.Job(_VIT, "inference", attention="cudnn", torch=True),
    speed.Job(_RESNET, "inference", torch=True),
  ),
  (
    speed.Job(_VIT, attention="xla", form="scan"),
    speed.Job(_VIT, attention="xla", form="kept"),
    speed.Job(_RESNET, form="scan"),
    speed.Job(_RESNET, form="kept"),
  ),
)


def programs(scale: programs_lib.Scale) -> Iterator[programs_lib.Program]:
  """Every program of the part, at the largest batch."""
  return speed.programs(scale, GROUPS)


def run(scale: programs_lib.Scale, log: measuring.Log) -> None:
  """A row per job."""
  speed.run(scale, log, GROUPS)
