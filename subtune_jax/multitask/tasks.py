"""Tasks of one backbone: read from model folders and task exports, and checked against each other.

A task is a whole network of which training changed some leaves. Tasks share a backbone where their
exports name one digest, they see images alike, and every leaf that training left alone is equal
bit for bit, running statistics of BatchNorm included.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
import dataclasses
import os
import pathlib
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from subtune_jax import methods
from subtune_jax.data import preprocess
from subtune_jax.deploy import classifier, description, folder
from subtune_jax.models import beside as beside_lib
from subtune_jax.training import checkpoint, export, trainable_split

PyTree = Any
_NOT_COMPARED = ("parent", "name", "num_classes", "norm_momentum")  # the last is of training
_AGAIN = "Tasks share one backbone: train them from the same weights, on images prepared alike."


class TaskError(ValueError):
  """Tasks that do not belong to one backbone, or a folder that holds no task."""


def named(texts: Sequence[str]) -> dict[str, str]:
  """Task -> model folder, of "NAME=FOLDER" or "FOLDER".

  A folder called best, as runs leave it, goes by the name of its run: "emoji" for runs/emoji/best.

  Raises:
    ValueError: an empty name, or one that is given twice.
  """
  found: dict[str, str] = {}
  for text in texts:
    name, equals, folder_ = text.partition("=")
    if not equals:
      path, folder_ = pathlib.Path(text).absolute(), text
      name = path.parent.name if path.name == "best" else path.name
    if not name or "/" in name or name in found:
      why = "is there twice" if name in found else "is no name of a task"
      raise ValueError(f"{name!r} (of {text!r}) {why}; give NAME=FOLDER, with a name for each")
    found[name] = folder_
  return found


@dataclasses.dataclass(frozen=True)
class Backbone:
  """The pretrained network that tasks were trained from; needed to read task exports.

  Attributes:
    model: a backbone of `subtune_jax.models`; its number of classes is not used.
    variables: {"params", "batch_stats"}, of `weights.load_pretrained`; the head is not used.
    preprocessing: likewise.
    interpolation: how files are resized, a key of `data.decode.INTERPOLATIONS`.
  """

  model: Any
  variables: PyTree
  preprocessing: preprocess.Preprocessing
  interpolation: str = "bicubic"


@dataclasses.dataclass(frozen=True)
class Task:
  """A trained network and what its training left alone.

  Attributes:
    network: the task's own network.
    frozen: '/'-paths ("batch_stats/stem/conv1/bn/mean") of leaves that training could not change.
    backbone_digest: `training.export.backbone_digest` of the variables that it started from.
    source: where it is from, for messages.
  """

  network: classifier.Classifier
  frozen: frozenset[str]
  backbone_digest: str
  source: str = "a training"

  def __post_init__(self):
    own = folder.flatten(self.network.variables)
    unknown = sorted(self.frozen - set(own))
    if unknown:
      raise TaskError(f"{self.source}: frozen has {unknown[:3]}, which the network lacks")

  @property
  def model(self) -> Any:
    """The backbone, of whatever the network makes of it."""
    return self.network.model.base if self._copied else self.network.model

  def original(self, path: str) -> str:
    """The backbone's name of a leaf of the network; see `beside.original`."""
    collection, _, inside = path.partition("/")
    return f"{collection}/{beside_lib.original(inside, self._copied)}"

  def leaves(self) -> dict[str, Any]:
    """'/'-path -> leaf of the backbone with what training changed, and of the head."""
    own = folder.flatten(self.network.variables)
    return {path: leaf for path, leaf in own.items() if self.original(path) == path}

  def beside(self) -> dict[str, Any]:
    """'/'-path -> leaf of the frozen network whose features the head reads as well; {}: none."""
    if not self._copied:
      return {}
    own = folder.flatten(self.network.variables)
    copies = {self.original(path): path for path in own if self.original(path) != path}
    return {path: own[copies.get(path, path)] for path in _body(self.leaves())}

  @property
  def _copied(self) -> tuple[str, ...]:
    """Blocks that the network has twice, tuned and frozen."""
    model = self.network.model
    return model.tuned if isinstance(model, beside_lib.BesideFrozen) else ()

  def tuned_blocks(self) -> tuple[str, ...]:
    """Blocks in which training could change a leaf, input to output."""
    touched = [name for name in folder.flatten(self.network.variables) if name not in self.frozen]
    return tuple(
      block
      for block in self.network.model.block_names
      if any(name.partition("/")[2].startswith(f"{block}/") for name in touched)
    )


def of_training(
  backbone: Backbone, variables: PyTree, touched: PyTree, class_names: Sequence[str]
) -> Task:
  """A task of a finished training, without a folder.

  Args:
    backbone: what it started from, as it was trained: with what `beside.wrap` made of it, if so.
    variables: `FitResult.variables`.
    touched: `FitResult.touched`.
    class_names: in the order of the head.

  Raises:
    TaskError: the variables are of another network.
  """
  there, own = (set(folder.flatten(given)) for given in (backbone.variables, variables))
  if there != own:
    raise TaskError(
      f"the variables are of another network than the backbone: {sorted(there ^ own)[0]} is in one "
      "of them alone; give the model and the variables that the training started from"
    )
  frozen = {name for name, own in folder.flatten(touched).items() if not own}
  network = _network(backbone, variables, class_names)
  return _task(network, frozen, export.backbone_digest(backbone.variables))


def read(source: str | os.PathLike | Task, backbone: Backbone | None) -> Task:
  """A task from a model folder (a run's best/) or a task export (a run's tasks/KEY).

  Args:
    source: path of the folder; a `Task` is returned as it is.
    backbone: what exports are put on; model folders need none.

  Raises:
    TaskError: a folder without an export, an export without a backbone.
    FolderError, CheckpointError: see `deploy.folder.load`, `training.export.load_task`.
  """
  if isinstance(source, Task):
    return source
  path = pathlib.Path(source)
  if (path / description.CONFIG).is_file() or not path.is_dir():
    return _of_model_folder(path)
  if (path / "best" / description.CONFIG).is_file():
    raise TaskError(
      f"{path} is a run's folder; give its model {path / 'best'} or one of its tasks/"
    )
  if backbone is None:
    raise TaskError(
      f"{path} holds a task's own leaves alone; give the backbone that it was trained from, as in "
      "MultiTask(tasks, backbone=multitask.Backbone(model, variables, preprocessing))"
    )
  return _of_export(path, backbone)


def _of_model_folder(path: pathlib.Path) -> Task:
  network = folder.load(path)
  if not (path / folder.TASK).is_dir():
    raise TaskError(
      f"{path} has no {folder.TASK}/, which says what its training changed; write the folder again "
      "with python -m subtune_jax.save_model"
    )
  arrays, note = checkpoint.load(path / folder.TASK)
  own = folder.flatten(network.variables)
  touched = {name.removeprefix("task/"): array for name, array in arrays.items()}
  for name, array in touched.items():
    if name not in own or not _same(array, own[name]):
      raise TaskError(f"{path / folder.TASK} is of another training than the model: {name} differs")
  return _task(network, set(own) - set(touched), note["backbone_digest"], str(path))


def _of_export(path: pathlib.Path, backbone: Backbone) -> Task:
  arrays, note = export.read_task(path)
  if note.get("beside_frozen"):
    made = beside_lib.wrap(backbone.model, backbone.variables, note["beside_frozen"])
    backbone = dataclasses.replace(backbone, model=made[0], variables=made[1])
  variables = export.put_task(path, arrays, note, backbone.variables)
  own = folder.flatten(variables)
  kernel = own[f"params/{trainable_split.HEAD}/kernel"]
  names = note.get("class_names") or [str(i) for i in range(kernel.shape[-1])]
  if len(names) != kernel.shape[-1]:
    raise TaskError(f"{path} names {len(names)} classes, and its head has {kernel.shape[-1]}")
  touched = {name.removeprefix("task/") for name in note["arrays"]}
  network = _network(backbone, variables, names)
  return _task(network, set(own) - touched, note["backbone_digest"], str(path))


def _task(
  network: classifier.Classifier, frozen: Collection[str], digest: str, source: str = Task.source
) -> Task:
  """A `Task`; of a network beside its frozen self the digest becomes that of the backbone."""
  task = Task(network, frozenset(frozen), digest, source)
  if not task.beside():
    return task
  head = {path: leaf for path, leaf in task.leaves().items() if path not in task.beside()}
  started = _tree({**task.beside(), **head})
  _, both = beside_lib.wrap(task.model, started, network.model.tuned)
  if export.backbone_digest(both) != digest:
    raise TaskError(f"{source}: a frozen leaf was changed after the training; export it again")
  return dataclasses.replace(task, backbone_digest=export.backbone_digest(started))


def _network(
  backbone: Backbone, variables: PyTree, class_names: Sequence[str]
) -> classifier.Classifier:
  names = tuple(class_names)
  model = backbone.model.clone(num_classes=len(names), parent=None)
  return classifier.Classifier(
    model, variables, backbone.preprocessing, backbone.model.image_size, backbone.interpolation,
    names,
  )  # fmt: skip


def shared(tasks: Mapping[str, Task], backbone: Backbone | None) -> dict[str, Task]:
  """The tasks with one array for each frozen leaf, after a check that they share a backbone.

  Args:
    tasks: by name.
    backbone: what they are to share; None: what the first of them was trained from.

  Raises:
    TaskError: they do not; it names the first difference.
  """
  facts = [(f"task {name!r} ({task.source})", _facts(task)) for name, task in tasks.items()]
  if backbone is not None:
    facts.insert(0, ("the backbone", _facts_of_backbone(backbone)))
  (first, wanted), *rest = facts
  for who, found in rest:
    for what in dict.fromkeys((*wanted, *found)):
      a, b = found.get(what, "none"), wanted.get(what, "none")
      if a != b:
        raise TaskError(f"{who} has {what} {_shown(a)}, {first} {_shown(b)}. {_AGAIN}")
  arrays = _frozen_leaves(tasks, backbone)
  _check_digest(tasks, arrays)
  return {name: _sharing(task, arrays) for name, task in tasks.items()}


def _sharing(task: Task, arrays: Mapping[str, Any]) -> Task:
  own = folder.flatten(task.network.variables)
  leaves = {
    path: arrays[task.original(path)] if path in task.frozen else leaf
    for path, leaf in own.items()
  }  # fmt: skip
  variables = {"batch_stats": {}, **_tree(leaves)}
  return dataclasses.replace(task, network=dataclasses.replace(task.network, variables=variables))


def _facts(task: Task) -> dict[str, Any]:
  own = task.network
  return _facts_of_network(
    task.model, own.image_size, own.preprocessing, own.interpolation, task.backbone_digest
  )


def _facts_of_backbone(own: Backbone) -> dict[str, Any]:
  digest = export.backbone_digest(own.variables)
  return _facts_of_network(
    own.model, own.model.image_size, own.preprocessing, own.interpolation, digest
  )


def _facts_of_network(model, image_size, preprocessing, interpolation, digest) -> dict[str, Any]:
  options = {
    f"the network's {field.name}": _without_classes(getattr(model, field.name))
    for field in dataclasses.fields(model)
    if field.name not in (*_NOT_COMPARED, "image_size")
  }
  return {
    "a network of the family": type(model).__name__, "image_size": image_size,
    "preprocessing.mean": preprocessing.mean, "preprocessing.std": preprocessing.std,
    "interpolation": interpolation, **options,
    "a backbone of digest": digest[:12],
  }  # fmt: skip


def _without_classes(value: Any) -> Any:
  """A network inside a network (side-tuning) has a number of classes that nothing reads."""
  return value.clone(num_classes=1, parent=None) if hasattr(value, "num_classes") else value


def _frozen_leaves(tasks: Mapping[str, Task], backbone: Backbone | None) -> dict[str, Any]:
  """'/'-path -> array of every leaf that the backbone or some task has as it was."""
  arrays: dict[str, Any] = {}
  if backbone is not None:
    own = folder.flatten(backbone.variables)
    arrays = {path: own[path] for path in _body(own)}
  owner = dict.fromkeys(arrays, "the backbone")
  for name, task in tasks.items():
    own = folder.flatten(task.network.variables)
    for given in sorted(task.frozen):
      path, leaf = task.original(given), own[given]
      if path not in arrays:
        owner[path], arrays[path] = f"task {name!r}", leaf
      elif arrays[path] is not leaf and not _same(arrays[path], leaf):
        kind = "running statistic" if path.startswith("batch_stats/") else "parameter"
        raise TaskError(
          f"task {name!r} ({task.source}): the frozen {kind} {path} is not that of {owner[path]}. "
          "Training left it alone, so it was changed afterwards; export the task again."
        )
  return arrays


def _check_digest(tasks: Mapping[str, Task], arrays: Mapping[str, Any]) -> None:
  """Compares the frozen leaves with the digest that tasks name, where no leaf is missing."""
  some = next(iter(tasks.values()))
  wanted = set(_body(some.leaves()))
  if not wanted <= set(arrays):  # some leaves were changed by every task
    return
  found = export.backbone_digest(_tree({path: arrays[path] for path in wanted}))
  if found != some.backbone_digest:
    raise TaskError(
      f"the frozen leaves of {', '.join(map(repr, tasks))} have digest {found[:12]}, and the tasks "
      f"name a backbone of {some.backbone_digest[:12]}: a frozen leaf was changed afterwards"
    )


def _tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
  return traverse_util.unflatten_dict({tuple(k.split("/")): leaf for k, leaf in leaves.items()})


def _body(leaves: Mapping[str, Any]) -> Iterator[str]:
  """Paths outside the head."""
  for path, leaf in leaves.items():
    collection, _, rest = path.partition("/")
    if collection != "params" or methods.backbone(rest, leaf):
      yield path


def _same(a: Any, b: Any) -> bool:
  """Whether two arrays are equal bit for bit."""
  a, b = np.asarray(jax.device_get(a)), np.asarray(jax.device_get(b))
  return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _shown(value: Any) -> str:
  text = str(value)
  return text if len(text) <= 60 else f"{text[:60]}..."
