"""Many tasks on one backbone: one program answers for all of them."""

from collections.abc import Iterable, Mapping
import functools
import os
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from subtune_jax.data import choices, preprocess
from subtune_jax.deploy import classifier
from subtune_jax.models import flops, host_memory
from subtune_jax.multitask import execution
from subtune_jax.multitask import plan as plan_lib
from subtune_jax.multitask import tasks as tasks_lib
from subtune_jax.training import checkpoint, evaluate

PyTree = Any
Source = str | os.PathLike | tasks_lib.Task


class MultiTask:
  """Several tasks on one frozen backbone, which forks where a task's own weights begin.

  With the forms as they are every task's answers are those of its own network, bit for bit on CPU
  at the same batch size, whatever other tasks are there.

  Args:
    tasks: name -> a model folder (a run's best/), a task export (a run's tasks/KEY), or a `Task`.
    backbone: what the tasks were trained from; needed by task exports, and checked otherwise.
    forms: unit -> one of `execution.FORMS`, of units that run more than once; "separate" where
      nothing is said. See `costs.measure`.

  Attributes:
    tasks: name -> `Task`, in the order in which they were given.
    plan: of all tasks.
    forms: as given.

  Raises:
    TaskError: no task, or tasks that do not share a backbone, with the first difference.
    ValueError: an unknown unit or form.
  """

  def __init__(
    self,
    tasks: Mapping[str, Source],
    backbone: tasks_lib.Backbone | None = None,
    *,
    forms: Mapping[str, str] | None = None,
  ):
    if not tasks:
      raise tasks_lib.TaskError("there is no task; give name -> model folder")
    self._backbone = backbone
    read = {name: tasks_lib.read(source, backbone) for name, source in tasks.items()}
    self.tasks = tasks_lib.shared(read, backbone)
    self._model = next(iter(self.tasks.values())).model.clone(num_classes=1, parent=None)
    self.units = (*self._model.block_names, plan_lib.HEAD)
    self.forms = dict(forms or {})
    for unit, form in self.forms.items():
      choices.check("unit", unit, self.units)
      choices.check("form", form, execution.FORMS)
    self._weights: dict[tuple[str, str], PyTree] = {}
    self.plan = plan_lib.build(
      self.units,
      {name: self._add(task) for name, task in self.tasks.items()},
      {name: self._keep(own) for name, task in self.tasks.items() if (own := task.beside())},
    )
    self._ready: dict[tuple[str, ...], tuple[Any, tuple[PyTree, ...]]] = {}

  @property
  def model(self) -> Any:
    """The backbone that the tasks share."""
    return self._model

  @property
  def image_size(self) -> int:
    """Height and width of the images that all tasks read, in pixels."""
    return self._first.image_size

  @property
  def preprocessing(self) -> preprocess.Preprocessing:
    """Mean and std that images are normalised by, in units of 0..255."""
    return self._first.preprocessing

  @property
  def _first(self) -> classifier.Classifier:
    return next(iter(self.tasks.values())).network

  @functools.cached_property
  def macs(self) -> dict[str, int]:
    """Unit -> multiply-adds of one run for one image; the head is that of the most classes."""
    classes = max(len(task.network.class_names) for task in self.tasks.values())
    model = self._model.clone(num_classes=classes, image_size=self.image_size, parent=None)
    return flops.count_macs(model)

  @property
  def num_bytes(self) -> int:
    """Of all weights; what tasks share counts once."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(list(self._weights.values())))

  def __str__(self) -> str:
    return plan_lib.text(self.plan, self.macs, self.forms)

  def draw(self) -> Any:
    """The plan as a matplotlib figure; see `figure.draw`."""
    from subtune_jax.multitask import figure  # matplotlib where a picture is asked for

    return figure.draw(self.plan, self.macs)

  def added(self, name: str, source: Source) -> "MultiTask":
    """The network with one more task. Errors: those of `MultiTask`, and a name that is there."""
    if name in self.tasks:
      raise ValueError(f"there is a task {name!r}; remove it first, or give another name")
    return MultiTask({**self.tasks, name: source}, self._backbone, forms=self.forms)

  def removed(self, name: str) -> "MultiTask":
    """The network without a task. Raises ValueError: no such task, or the last one."""
    choices.check("task", name, self.tasks)
    rest = {own: task for own, task in self.tasks.items() if own != name}
    return MultiTask(rest, self._backbone, forms=self.forms)

  def with_forms(self, forms: Mapping[str, str]) -> "MultiTask":
    """The network computed in other forms; see `execution.FORMS`."""
    return MultiTask(self.tasks, self._backbone, forms=forms)

  def apply(self, images: Any, tasks: Iterable[str] | None = None) -> dict[str, execution.Answers]:
    """One batch through one compiled program; a task that is not asked for costs nothing.

    Args:
      images: [n, image_size, image_size, 3], RGB in 0..255.
      tasks: names; None is all.

    Returns:
      Task -> `Answers`, in the order of the plan.

    Raises:
      ValueError: an unknown task, or images of another size.
    """
    wanted = (self.image_size, self.image_size, 3)
    if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
      raise ValueError(
        f"images have shape {tuple(images.shape)}; the tasks read [n, {wanted[0]}, {wanted[1]}, 3]"
      )
    run, weights = self.compiled(tasks)
    return dict(zip(self._asked(tasks), run(weights, images), strict=True))

  def compiled(self, tasks: Iterable[str] | None = None) -> tuple[Any, tuple[PyTree, ...]]:
    """(jitted function of weights and images that returns `Answers` of each task, the weights).

    Networks whose plans have one shape share the function, whatever their weights. On CPU freed
    memory stays with the process from now on (`host_memory`): the program of many tasks has one
    temporary buffer for all of them, and where only that one is large enough for the kernel to take
    back after every call, many networks would be quicker apart.

    Args:
      tasks: names; None is all.
    """
    asked = self._asked(tasks)
    if asked not in self._ready:
      if jax.default_backend() == "cpu":
        host_memory.keep_freed()
      plan = self.plan.only(asked)
      order = execution.steps(plan, self.forms)
      run = execution.program(self._model, plan.anonymous(), order, self.preprocessing)
      self._ready[asked] = run, tuple(self.weights_of_step(step, plan) for step in order)
    return self._ready[asked]

  def weights_of(self, node: plan_lib.Node) -> PyTree:
    """{"params", "batch_stats"} of a node's unit alone, on the device."""
    return self._weights[node.unit, node.weights]

  def weights_of_step(self, step: execution.Step, plan: plan_lib.Plan | None = None) -> PyTree:
    """What a step reads: a unit's variables, stacked where it has several sets of them.

    Args:
      step: of `execution.steps`.
      plan: that of the step; None is that of all tasks.
    """
    nodes = (plan or self.plan).nodes
    return execution.stacked([self.weights_of(nodes[own[0]]) for own in step.nodes])

  def predict(
    self,
    images: classifier.Images,
    tasks: Iterable[str] | None = None,
    *,
    batch_size: int = 64,
    calibrate: bool = False,
  ) -> dict[str, classifier.Predictions]:
    """What every task says of pictures.

    Args:
      images: paths, Pillow images, or an array; see `Classifier.images`.
      tasks: names; None is all.
      batch_size: images at a time; the last batch is filled up.
      calibrate: by what each task's folder keeps; see `Classifier.calibrated`.

    Raises:
      ValueError: as of `apply`, `Classifier.images` and `Classifier.calibrated`.
    """
    asked = self._asked(tasks)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in asked}
    for batch, real in evaluate.batches(self._first.images(images), batch_size):
      for name, answers in self.apply(batch, asked).items():
        rows[name].append(np.asarray(answers.logits)[:real])
    return {
      name: self.tasks[name].network.answer(np.concatenate(own), calibrate=calibrate)
      for name, own in rows.items()
    }

  def _asked(self, tasks: Iterable[str] | None) -> tuple[str, ...]:
    """Names in the order of the plan."""
    if isinstance(tasks, str):
      raise ValueError(f"tasks={tasks!r} is a string; give a list of names")
    asked = tuple(self.tasks) if tasks is None else tuple(tasks)
    for name in asked:
      choices.check("task", name, self.tasks)
    return tuple(name for name in self.tasks if name in asked)

  def _add(self, task: tasks_lib.Task) -> dict[str, tuple[str, bool]]:
    """Unit -> (digest, whether it was trained)."""
    tuned = {*task.tuned_blocks(), plan_lib.HEAD}
    return {unit: (own, unit in tuned) for unit, own in self._keep(task.leaves()).items()}

  def _keep(self, leaves: Mapping[str, Any]) -> dict[str, str]:
    """Unit -> digest of its leaves; those that are new go to the device."""
    found = {}
    for unit, own in by_unit(leaves, self.units).items():
      found[unit] = checkpoint.digest(own)
      if own and (unit, found[unit]) not in self._weights:
        self._weights[unit, found[unit]] = jax.device_put(_variables(unit, own))
    return found


def by_unit(leaves: Mapping[str, Any], units: Iterable[str]) -> dict[str, dict[str, Any]]:
  """Unit -> its leaves by '/'-path ("params/block1/unit1/conv1/kernel").

  Args:
    leaves: of a network, by '/'-path.
    units: of the network.

  Raises:
    ValueError: a leaf that is in no unit.
  """
  found: dict[str, dict[str, Any]] = {unit: {} for unit in units}
  for path, leaf in leaves.items():
    inside = path.partition("/")[2]
    own = [unit for unit in found if inside.startswith(f"{unit}/")]
    if not own:
      raise ValueError(f"{path} is in none of the units {', '.join(found)}")
    found[own[0]][path] = leaf
  return found


def _variables(unit: str, leaves: Mapping[str, Any]) -> PyTree:
  """{"params", "batch_stats"} of the unit alone."""
  found: dict[str, dict[tuple[str, ...], Any]] = {"params": {}, "batch_stats": {}}
  for path, leaf in leaves.items():
    collection, _, inside = path.partition("/")
    found[collection][tuple(inside.removeprefix(f"{unit}/").split("/"))] = np.asarray(leaf)
  return {name: traverse_util.unflatten_dict(own) for name, own in found.items()}
