"""Where the trainings of a run go: this process, or the machines of a Ray cluster."""

import atexit
from concurrent import futures
import functools
from typing import Any

import ml_collections

from subtune_jax.data import choices
from subtune_jax.workers import here, on_ray

HERE, RAY = "here", "ray"
KINDS = (HERE, RAY)
NO_FORECAST = "no forecast: a step is timed on this machine, and the trainings run elsewhere"


def section() -> ml_collections.ConfigDict:
  """The section `ray` of a config."""
  ray = ml_collections.ConfigDict()
  ray.cpus = 1.0  # cores of each worker
  ray.gpus = -1.0  # GPUs of each, also a share (0.5); -1: one where the cluster has any, else none
  ray.number = 0  # of workers; 0: as many as the machines hold
  return ray


def check(config: Any, *, one_device: bool = False) -> None:
  """Raises ValueError for fields that make no sense.

  Args:
    config: of a comparison or a search.
    one_device: a training takes one device at most.
  """
  choices.check("workers", config.workers, KINDS)
  if config.workers == HERE:
    return
  if not on_ray.available():
    raise ValueError(on_ray.MISSING)
  ray = config.ray
  if not ray.cpus > 0 or ray.number < 0 or (ray.gpus > 1 and ray.gpus != int(ray.gpus)):
    raise ValueError(
      f"ray.cpus is {ray.cpus}, ray.gpus {ray.gpus}, ray.number {ray.number}; give cpus above 0, a "
      "whole number of GPUs or a share below 1, and a number of workers or 0"
    )
  if one_device and ray.gpus > 1:
    raise ValueError(
      f"ray.gpus is {ray.gpus:g}, and a training of a search takes one device: give 1 or a share"
    )


def check_here(config: Any) -> None:
  """Raises ValueError where trainings that read their networks on the way are to go elsewhere."""
  if config.workers != HERE:
    raise ValueError(
      f"workers is {config.workers!r}, and the study {config.experiment!r} reads its networks "
      f"after every epoch, in this process: leave it at {HERE!r}"
    )


def of(config: Any, places: int) -> futures.Executor:
  """The executor that a config asks for; of Ray one for the whole process.

  Args:
    config: a comparison's or a search's.
    places: how many trainings run at a time in this process.
  """
  if config.workers == HERE:
    return here.Here(places)
  ray = config.ray
  return _on_ray(ray.cpus, ray.gpus, ray.number)


@functools.cache
def _on_ray(cpus: float, gpus: float, number: int) -> on_ray.RayExecutor:
  made = on_ray.RayExecutor(cpus=cpus, gpus=gpus, number=number)
  atexit.register(made.shutdown, wait=False, cancel_futures=True)
  return made
