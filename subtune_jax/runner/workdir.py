"""The folder of a run: made with its config, entered again with one that asks for the same."""

from collections.abc import Collection, Mapping
import functools
import json
import os
import pathlib
from typing import Any

from subtune_jax import files, processes, strict_json

# Fields that change how a run goes on or what heads its page, not what it computes.
_FREE_FIELDS = (
  "resume", "tensorboard", "checkpoint_seconds", "save_model", "workers", "trace_steps",
  "backbone.remat", "title",
)  # fmt: skip
_FREE_SECTIONS = ("ray",)
# Names of studies in configs of older runs.
_RENAMED: dict[str, dict[Any, str]] = {"experiment": {"holistic": "holistic_transfer"}}


@functools.cache
def optional_fields() -> Mapping[str, Any]:
  """Fields that workdirs and keys of ledgers may lack, and what stands for their absence."""
  from subtune_jax import methods  # imports jax, which a command line that is read does without

  return {
    "data.label_map": [], "select_by": "accuracy", "sampling": "uniform",
    "loss.class_weights": "none", "optimizer.accumulate": 1,
    "backbone.frozen_dtype": "float32",
    "augment.flip_vertical": False, "augment.rotate": 0.0, "augment.quarter_turns": False,
    "search.final_grid": False, "search.landmarks": 1000, "subtuning.beside_frozen": False,
    **{f"{name}.reinit": [] for name in methods.DECLARED},
    **{f"{name}.probe_first": False for name in methods.DECLARED},
  }  # fmt: skip


def as_json(config: Any) -> dict[str, Any]:
  """The config as plain JSON values."""
  return strict_json.loads(strict_json.dumps(json.loads(config.to_json_best_effort())))


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON to a file, whole or not at all; a number that is not finite as null."""
  text = strict_json.dumps(value, indent=1, sort_keys=True) + "\n"
  files.write_atomically(path, text.encode())


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Lines "field: old -> new" for the fields that decide the result."""
  sections = _new_sections(old)
  old, new = files.flatten(old), files.flatten(new)
  for name, values in _RENAMED.items():
    old[name] = values.get(old.get(name), old.get(name))
  old, new = {**optional_fields(), **old}, {**optional_fields(), **new}
  return [
    f"{name}: {old.get(name, 'absent')!r} -> {new.get(name, 'absent')!r}"
    for name in sorted(set(old) | set(new))
    if name not in _FREE_FIELDS
    and name.partition(".")[0] not in (*_FREE_SECTIONS, *sections)
    and old.get(name) != new.get(name)
  ]


def _new_sections(old: Mapping[str, Any]) -> tuple[str, ...]:
  """Of methods that are younger than the run: that one runs is seen in the field `methods`."""
  from subtune_jax import methods  # see optional_fields

  return tuple(name for name in methods.DECLARED if name not in old)


def enter(
  path: str | os.PathLike, config: Any, free: Collection[str] = ()
) -> tuple[pathlib.Path, bool]:
  """Makes the workdir, or enters one that a run with the same config made.

  Args:
    path: of the folder.
    config: of this run.
    free: fields that may differ from the earlier run's; the folder's config.json becomes this one.

  Returns:
    The folder, and whether an earlier run has been there.

  Raises:
    ValueError: another config, or something else, has been there; or a process of this run does not
      see the folder.
  """
  path = pathlib.Path(path)
  entered = processes.on_first(lambda: _enter(path, config, free))
  (blind,) = processes.any_of(not (path / "config.json").is_file())
  if blind:
    raise ValueError(
      f"not every process of this run sees workdir {path}; give a --workdir on a file system that "
      "all hosts share"
    )
  return path, entered


def _enter(path: pathlib.Path, config: Any, free: Collection[str]) -> bool:
  if path.exists() and not path.is_dir():
    raise ValueError(f"workdir {path} is a file; choose another --workdir")
  path.mkdir(parents=True, exist_ok=True)
  new = as_json(config)
  file = path / "config.json"
  if not file.exists():
    for leftover in path.glob(".config.json.*.tmp"):  # of a start that was killed here
      leftover.unlink(missing_ok=True)
    strangers = sorted(p.name for p in path.iterdir())
    if strangers:
      raise ValueError(
        f"workdir {path} holds {', '.join(strangers[:5])} but no config.json, so no run made it; "
        "choose an empty --workdir"
      )
    write_json(file, new)
    return False
  try:
    old = strict_json.loads(file.read_text())
  except ValueError as e:
    raise ValueError(f"{file} is damaged; choose another --workdir") from e
  changed = differences(old, new)
  refused = [line for line in changed if line.partition(":")[0] not in free]
  if refused:
    raise ValueError(
      f"workdir {path} belongs to a run with another config:\n  " + "\n  ".join(refused)
      + "\nchoose another --workdir, or go back to the old values"
    )  # fmt: skip
  if changed:
    write_json(file, new)
  return True
