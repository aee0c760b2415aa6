"""The plan of a multi-task network: a trie over the units, keyed by their weights.

Tasks whose units have equal weights from the images on share a node; where the weights differ the
path forks. A task of only a head rides the frozen trunk to its end.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses

from subtune_jax.data import choices
from subtune_jax.training import trainable_split

HEAD = trainable_split.HEAD


@dataclasses.dataclass(frozen=True)
class Node:
  """One run of one unit.

  Attributes:
    unit: a block, or "head".
    parent: position in `Plan.nodes` of the node whose output it reads; None: the images.
    weights: digest of the unit's parameters and running statistics.
    tasks: those that need it, in the order of the plan.
    tuned: training could change the unit.
    beside: of a head that reads the frozen network's features as well: position of the node that
      gives them.
  """

  unit: str
  parent: int | None
  weights: str
  tasks: tuple[str, ...]
  tuned: bool
  beside: int | None = None

  @property
  def reads(self) -> tuple[int | None, ...]:
    """Positions of the nodes whose outputs it reads; None: the images."""
    return (self.parent,) if self.beside is None else (self.parent, self.beside)


@dataclasses.dataclass(frozen=True)
class Segment:
  """A run of nodes without a fork.

  Attributes:
    nodes: positions in `Plan.nodes`, input to output.
    parent: position among the segments; None for those that read the images.
    tasks: those that need it.
  """

  nodes: tuple[int, ...]
  parent: int | None
  tasks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
  """What runs for a set of tasks.

  Attributes:
    units: of the network, input to output, "head" last.
    nodes: unit by unit; a parent comes before its children.
    tasks: names, in the order in which they were given.
  """

  units: tuple[str, ...]
  nodes: tuple[Node, ...]
  tasks: tuple[str, ...]

  def levels(self) -> dict[str, tuple[int, ...]]:
    """Unit -> positions of its nodes, input to output."""
    found: dict[str, list[int]] = {unit: [] for unit in self.units}
    for i, node in enumerate(self.nodes):
      found[node.unit].append(i)
    return {unit: tuple(own) for unit, own in found.items()}

  def classes(self, unit: str) -> tuple[tuple[int, ...], ...]:
    """The nodes of a unit, those of equal weights together."""
    found: dict[str, list[int]] = {}
    for i in self.levels()[unit]:
      found.setdefault(self.nodes[i].weights, []).append(i)
    return tuple(tuple(own) for own in found.values())

  def leaf(self, task: str) -> int:
    """Position of the task's head.

    Raises:
      ValueError: no such task.
    """
    choices.check("task", task, self.tasks)
    return next(i for i, node in enumerate(self.nodes) if node.unit == HEAD and task in node.tasks)

  def path(self, task: str) -> tuple[int, ...]:
    """Positions of what a task runs, input to output. Errors: see `leaf`."""
    found: list[int] = []
    at: int | None = self.leaf(task)
    while at is not None:
      found.append(at)
      at = self.nodes[at].parent
    return tuple(reversed(found))

  def only(self, tasks: Iterable[str]) -> "Plan":
    """The plan of some of the tasks; nothing that no other needs is left.

    Raises:
      ValueError: a task that is not in the plan, or none.
    """
    tasks = tuple(tasks)
    for task in tasks:
      choices.check("task", task, self.tasks)
    if not tasks:
      raise ValueError(f"tasks is empty; give some of {', '.join(self.tasks)}")
    kept, place = list[Node](), dict[int, int]()
    for i, node in enumerate(self.nodes):
      own = tuple(task for task in node.tasks if task in tasks)
      if own:
        place[i] = len(kept)
        parent, beside = (None if at is None else place[at] for at in (node.parent, node.beside))
        kept.append(dataclasses.replace(node, tasks=own, parent=parent, beside=beside))
    return Plan(self.units, tuple(kept), tuple(task for task in self.tasks if task in tasks))

  def anonymous(self) -> "Plan":
    """The plan without names and digests: plans of one shape are equal, and share a program."""
    tasks = {name: str(i) for i, name in enumerate(self.tasks)}
    digests: dict[str, str] = {}
    for node in self.nodes:
      digests.setdefault(node.weights, str(len(digests)))
    nodes = tuple(
      Node(
        node.unit,
        node.parent,
        digests[node.weights],
        tuple(tasks[name] for name in node.tasks),
        False,
        node.beside,
      )
      for node in self.nodes
    )
    return Plan(self.units, nodes, tuple(tasks.values()))

  def segments(self) -> tuple[Segment, ...]:
    """The tree with what runs in a row as one, parents first, each followed by its children."""
    children: dict[int | None, list[int]] = {}
    for i, node in enumerate(self.nodes):
      children.setdefault(node.parent, []).append(i)
    found: list[Segment] = []

    def walk(at: int, parent: int | None) -> None:
      run = [at]
      below = children.get(run[-1], [])
      while len(below) == 1 and self.nodes[below[0]].tasks == self.nodes[at].tasks:
        run.append(below[0])
        below = children.get(run[-1], [])
      found.append(Segment(tuple(run), parent, self.nodes[at].tasks))
      own = len(found) - 1
      for child in children.get(run[-1], ()):
        walk(child, own)

    for root in children.get(None, ()):
      walk(root, None)
    return tuple(found)

  def total(self, per_unit: Mapping[str, float]) -> float:
    """The sum over the nodes of what their units cost.

    Args:
      per_unit: unit -> cost of one run, such as `models.flops.count_macs(model)`.
    """
    return sum(per_unit[node.unit] * len(node.reads) for node in self.nodes)


def build(
  units: Sequence[str],
  tasks: Mapping[str, Mapping[str, tuple[str, bool]]],
  beside: Mapping[str, Mapping[str, str]] | None = None,
) -> Plan:
  """The plan of tasks.

  Args:
    units: of the network, input to output, "head" last.
    tasks: name -> unit -> (digest of its weights, whether training could change it).
    beside: name -> block -> digest of its weights in the frozen network, of tasks whose heads read
      the features of that as well.
  """
  beside, nodes = beside or {}, []
  # (task, whether this is the way through the frozen network) -> the last node of the way.
  at: dict[tuple[str, bool], int | None] = {}
  for name in tasks:
    at |= {(name, frozen): None for frozen in (False, True) if not frozen or name in beside}
  for unit in units:
    groups: dict[tuple[int | None, str], list[tuple[str, bool]]] = {}
    for (name, frozen), parent in at.items():
      if unit != HEAD:
        key = parent, beside[name][unit] if frozen else tasks[name][unit][0]
        groups.setdefault(key, []).append((name, frozen))
      elif not frozen:
        groups[parent, name] = [(name, frozen)]  # every task has its own answers
    for (parent, weights), ways in groups.items():
      names = tuple(dict.fromkeys(name for name, _ in ways))
      tuned = any(tasks[name][unit][1] for name, frozen in ways if not frozen)
      if unit == HEAD:
        weights = tasks[names[0]][unit][0]
      other = at.get((names[0], True)) if unit == HEAD else None
      nodes.append(Node(unit, parent, weights, names, tuned, other))
      at |= dict.fromkeys(ways, len(nodes) - 1)
  return Plan(tuple(units), tuple(nodes), tuple(tasks))


def text(plan: Plan, macs: Mapping[str, float], forms: Mapping[str, str] | None = None) -> str:
  """The plan as a tree of lines, and what it costs.

  Args:
    plan: what is shown.
    macs: multiply-adds of each unit.
    forms: unit -> how its runs are computed (`execution.FORMS`).
  """
  one, all_ = sum(macs.values()), plan.total(macs)
  lines = [
    f"{_count(len(plan.tasks), 'task')} on one backbone of {len(plan.units) - 1} blocks: "
    f"{all_ / 1e6:.1f} M multiply-adds an image, {all_ / one:.2f} times one network's "
    f"(separate networks: {len(plan.tasks):.2f})"
  ]
  rows = list(_rows(plan, plan.segments()))
  width = max(len(left) for left, _ in rows)
  lines += [f"{left:{width}}  {right}" for left, right in rows]
  lines += list(_form_lines(plan, forms or {}))
  return "\n".join(lines)


def _rows(plan: Plan, segments: Sequence[Segment]) -> Iterator[tuple[str, str]]:
  """(drawn units, tasks and what is tuned) of each segment."""
  children: dict[int | None, list[int]] = {}
  for i, own in enumerate(segments):
    children.setdefault(own.parent, []).append(i)

  def walk(at: int, before: str, mark: str, after: str) -> Iterator[tuple[str, str]]:
    own = segments[at]
    yield f"{before}{mark}{span(plan, own)}", _says(plan, own)
    below = children.get(at, [])
    for child in below:
      last = child == below[-1]
      yield from walk(child, before + after, "└ " if last else "├ ", "  " if last else "│ ")

  for root in children.get(None, ()):
    yield from walk(root, "", "", "")


def span(plan: Plan, segment: Segment) -> str:
  """The units of a segment in a few words: "stem .. block13"."""
  names = [plan.nodes[i].unit for i in segment.nodes]
  return " .. ".join(dict.fromkeys((names[0], names[-1])))


def _says(plan: Plan, segment: Segment) -> str:
  tuned = [plan.nodes[i].unit for i in segment.nodes if plan.nodes[i].tuned]
  said = f"tuned: {', '.join(own)}" if (own := [unit for unit in tuned if unit != HEAD]) else ""
  if plan.nodes[segment.nodes[-1]].beside is not None:
    said += ", " * bool(said) + "the head reads the frozen features too"
  return ", ".join(segment.tasks) + (f" ({said})" if said else "")


def _form_lines(plan: Plan, forms: Mapping[str, str]) -> Iterator[str]:
  for unit, own in plan.levels().items():
    if len(own) > 1 and unit != HEAD and unit in forms:
      sets = len(plan.classes(unit))
      yield f"{unit}: {len(own)} runs, {_count(sets, 'set')} of weights, {forms[unit]}"


def _count(n: int, what: str) -> str:
  return f"{n} {what}{'' if n == 1 else 's'}"
