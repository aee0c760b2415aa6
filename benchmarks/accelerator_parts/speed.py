"""Training and inference of whole networks: images/s, share of the peak, memory; against torch."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import statistics
from typing import Any

import jax

from benchmarks.accelerator_parts import measuring, peaks, torch_peer
from benchmarks.accelerator_parts import programs as programs_lib
from subtune_jax.models import flops

PEER = "torch"


@dataclasses.dataclass(frozen=True)
class Job:
  """One row.

  Attributes:
    network: its name.
    work: "training" or "inference".
    dtype: a key of `programs.DTYPES`.
    attention: of a ViT; None is jax's choice.
    form: "loop" over steps; "scan", an epoch as one program; "kept", a loop over steps that do not
      give up their state's memory; inference has "batch" alone.
    torch: measured beside it.
  """

  network: str
  work: str = "training"
  dtype: str = "bfloat16"
  attention: str | None = None
  form: str = "loop"
  torch: bool = False

  def labels(self) -> dict[str, str]:
    """The first columns of the row."""
    attention = {"attention": self.attention} if self.attention else {}
    form = "batch" if self.work == "inference" else self.form
    return {"network": self.network, "work": self.work, "dtype": self.dtype, "form": form,
            **attention}  # fmt: skip

  def program(self, scale: programs_lib.Scale, batch: int) -> programs_lib.Program:
    """What is compiled for a batch size."""
    options = {"attention": self.attention} if self.attention else {}
    model = scale.model(self.network, self.dtype, **options)
    name = " ".join((*self.labels().values(), str(batch)))
    if self.work == "inference":
      return programs_lib.inference(name, model, batch)
    spec = programs_lib.spec_of(model, programs_lib.full_fine_tuning())
    steps = scale.steps if self.form == "scan" else 0
    return programs_lib.training(name, spec, batch, steps=steps, donate=self.form != "kept")


def runnable(job: Job) -> bool:
  """Whether this machine can run it: cuDNN's attention needs an NVIDIA GPU."""
  return job.attention != "cudnn" or jax.default_backend() in ("gpu", "cuda")


def programs(scale: programs_lib.Scale, groups: Sequence[Sequence[Job]]) -> Iterator[Any]:
  """The program of each job at the largest batch."""
  for group in groups:
    for job in group:
      yield job.program(scale, scale.batches[0])


def run(scale: programs_lib.Scale, log: measuring.Log, groups: Sequence[Sequence[Job]]) -> None:
  """A row per job; the jobs of a group are compiled at the same time, then measured in turn."""
  peers = torch_peer.Peers()
  for group in groups:
    possible = [job for job in group if runnable(job)]
    for job in group:
      if job not in possible:
        log.add(**job.labels(), error="needs an NVIDIA GPU")
    ready: list[Any] = [None] * len(possible)  # each is logged as not begun
    if not log.late:
      ready = measuring.compile_all(job.program(scale, scale.batches[0]) for job in possible)
    for job, compiled in zip(possible, ready, strict=True):
      work = functools.partial(_row, scale, log, job, compiled, peers)
      log.attempt(job.labels(), work)
  peers.close()


def _row(
  scale: programs_lib.Scale,
  log: measuring.Log,
  job: Job,
  ready: measuring.Compiled | Exception,
  peers: torch_peer.Peers,
) -> None:
  """Measures at the largest batch that fits; torch at the same."""
  for batch in scale.batches:
    try:
      if batch != scale.batches[0]:
        ready = measuring.Compiled(job.program(scale, batch))
      if isinstance(ready, Exception):
        raise ready
      seconds, note = _measure(scale, job, ready, batch, peers)
      break
    except Exception as e:
      if not measuring.out_of_memory(e) or batch == scale.batches[-1]:
        raise
      peers.close()
  images = ready.program.images
  mine = images / statistics.median(seconds["ours"])
  row = {**job.labels(), "batch": batch, "images/s": mine}
  used = share_of_peak(scale, job, mine)
  if used is not None:
    row["MFU"] = used
  row["compile s"] = ready.seconds
  if ready.memory_bytes is not None:
    row["GB"] = ready.memory_bytes / 1e9
  if PEER in seconds:
    ratios = [t / m for t, m in zip(seconds[PEER], seconds["ours"], strict=True)]
    row["torch images/s"] = batch / statistics.median(seconds[PEER])
    row["ours / torch"] = statistics.median(ratios) * images / batch
  log.add(**row, **note)


def _measure(
  scale: programs_lib.Scale,
  job: Job,
  compiled: measuring.Compiled,
  batch: int,
  peers: torch_peer.Peers,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
  """Seconds per call of "ours" and, where it is asked for and there, "torch"; and what to say.

  Where memory runs out with torch's beside ours, torch is what is left out.
  """
  mine = compiled.run()
  mine(1)
  if not job.torch:
    return measuring.interleaved({"ours": mine}, scale), {}
  try:
    peer = peers.get(scale, job.network, job.work, job.dtype, batch)
    seconds = measuring.interleaved({"ours": mine, PEER: peer.run}, scale)
  except Exception as e:
    peers.close()
    del mine  # its state may have been given up
    return measuring.interleaved({"ours": compiled.run()}, scale), {"peer": measuring.short(e)}
  found = {"peer": peer.title, "torch compile s": peer.warm_seconds}
  return seconds, found | ({"torch GB": peer.memory_bytes / 1e9} if peer.memory_bytes else {})


def share_of_peak(scale: programs_lib.Scale, job: Job, images_per_second: float) -> float | None:
  """Model-FLOP utilisation; a training step is three forward passes (Chowdhery et al. 2022, B).

  None where the device's peak is not known.
  """
  most = peaks.peak(jax.devices()[0].device_kind, job.dtype)
  if most is None:
    return None
  macs = sum(flops.count_macs(scale.model(job.network, job.dtype)).values())
  passes = 3 if job.work == "training" else 1
  return 2 * macs * passes * images_per_second / most
