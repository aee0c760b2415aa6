"""VTAB-1k: `ENTRIES` for the registry, the table of tasks, and the scores."""

import functools

from subtune_jax.data.vtab.load import INTERPOLATIONS, OFFICIAL, SPLITS, full_name, load
from subtune_jax.data.vtab.tasks import (
  EXTRA,
  GROUPS,
  TASKS,
  Task,
  group_means,
  mean_of_group_means,
  score,
)

# Registry name -> loader `(split, image_size, *, interpolation) -> Dataset`.
ENTRIES = {
  full_name(task): functools.partial(load, task) for task in (*TASKS.values(), *EXTRA.values())
}
# Registry name -> what `prepare.py` prepares for it.
SOURCES = {full_name(task): task.source for task in (*TASKS.values(), *EXTRA.values())}

__all__ = [
  "ENTRIES",
  "EXTRA",
  "GROUPS",
  "INTERPOLATIONS",
  "OFFICIAL",
  "SOURCES",
  "SPLITS",
  "TASKS",
  "Task",
  "full_name",
  "group_means",
  "load",
  "mean_of_group_means",
  "score",
]
