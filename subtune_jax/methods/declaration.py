"""A method declared once: its name, source, options, grid, and how its stages are built.

Configs, help, the README's table and reports read this; a new method is a declaration in one file
of this folder, listed in its `DECLARATIONS`.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
from typing import Any, NamedTuple

from subtune_jax.methods import stage as stage_lib

DECADES = (1e-5, 1e-4, 1e-3, 1e-2)

# (learning rate, further fields of a stage) -> the stages.
Builder = Callable[..., stage_lib.Method]
# (model, variables, key, options of the method) -> (model, variables): a network with added leaves.
Prepare = Callable[[Any, Any, Any, Mapping[str, Any]], tuple[Any, Any]]


class Context(NamedTuple):
  """What a method may ask of the run.

  Attributes:
    blocks: of the network, input to output.
    steps_per_epoch: optimiser steps of an epoch; 0 where an epoch is one pass.
  """

  blocks: tuple[str, ...]
  steps_per_epoch: int = 0


@dataclasses.dataclass(frozen=True)
class Option:
  """A field of the method's section of a config: its default and what it means."""

  default: Any
  comment: str


PROBE_FIRST = Option(False, "start from the linear probe rather than a random head")


@dataclasses.dataclass(frozen=True)
class Declaration:
  """A method.

  Attributes:
    name: in configs, records and on the command line.
    title: in tables and figures.
    source: the paper, as a link or its name with its number; "" where there is none.
    trains: what its stages train, in a few words.
    call: the function that builds it, as README shows it.
    build: (section of the config, `Context`) -> `Builder`.
    options: fields of its section beside those of `gradient`.
    gradient: defaults of the fields that all methods by gradient share: epochs, learning_rates,
      norm_mode; None for a method that takes no such steps.
    grid: learning rates that a full run tries, by decades, for Adam.
    probe_first: whether a linear probe comes before the stages; an option of that name overrides.
    needs: what a run has to offer beside images and labels: "head" (a head that knows the classes),
      "source_logits" (a column of the training set), "steps" (epochs counted in steps).
    prepare: changes the network before its trainings; None: as it is.
    prepare_if: the option that has to be true for that; "": always.
  """

  name: str
  title: str
  trains: str
  call: str
  build: Callable[[Any, Context], Builder]
  source: str = ""
  options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
  gradient: Mapping[str, Any] | None = None
  grid: tuple[float, ...] = DECADES
  probe_first: bool = False
  needs: frozenset[str] = frozenset()
  prepare: Prepare | None = None
  prepare_if: str = ""

  def changes_network(self, section: Mapping[str, Any] | None) -> bool:
    """Whether the method changes the network, by its section of a config (see `options_of`)."""
    if self.prepare is None:
      return False
    return not self.prepare_if or bool(options_of(self, section)[self.prepare_if])


def options_of(own: Declaration, section: Mapping[str, Any] | None) -> dict[str, Any]:
  """The options of a method that changes the network, from its section of a config.

  Args:
    own: the method.
    section: its fields; None, and fields that are not there: as declared.
  """
  given = {} if section is None else section
  found = {name: given.get(name, option.default) for name, option in own.options.items()}
  return {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}


def gradient(
  epochs: int = 8, learning_rates: tuple[float, ...] = (1e-3,), norm_mode: str = "batch"
) -> dict[str, Any]:
  """Defaults of the fields that all methods by gradient share."""
  return {"epochs": epochs, "learning_rates": learning_rates, "norm_mode": norm_mode}


def markdown(declarations: Iterable[Declaration]) -> str:
  """The README's table of methods."""
  rows = ["| method | name | trains | call |", "|---|---|---|---|"]
  for own in declarations:
    source = f" ({own.source})" if own.source else ""
    rows.append(f"| {own.title}{source} | `{own.name}` | {own.trains} | `{own.call}` |")
  return "\n".join(rows)
