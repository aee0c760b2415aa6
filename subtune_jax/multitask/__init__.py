"""Many tasks on one frozen backbone: one trunk, a fork where each task's own weights begin."""

from subtune_jax.multitask.execution import FORMS, Answers
from subtune_jax.multitask.network import MultiTask
from subtune_jax.multitask.tasks import Backbone, Task, TaskError, named, of_training

__all__ = [
  "FORMS", "Answers", "Backbone", "MultiTask", "Task", "TaskError", "named", "of_training",
]  # fmt: skip
