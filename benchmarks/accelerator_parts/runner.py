"""Runs the parts one after the other and writes what there is after every row."""

import datetime
import importlib.metadata
import json
import pathlib
import platform
import re
import sys
import time
from typing import Any

import jax
import numpy as np

from benchmarks import accelerator_parts
from benchmarks.accelerator_parts import measuring
from benchmarks.accelerator_parts import programs as programs_lib

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "torchvision",
             "timm")  # fmt: skip


def facts(command: str, scale: programs_lib.Scale) -> dict[str, Any]:
  """What the figures depend on."""
  versions = {}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  device = jax.devices()[0]
  return {
    "device": device.device_kind, "devices": jax.device_count(),
    "platform": jax.default_backend(), "platform version": device.client.platform_version,
    "date": datetime.date.today().isoformat(), "command": command,
    "tiny": scale.tiny,
    "python": platform.python_version(), **versions,
  }  # fmt: skip


def plain(value: Any) -> Any:
  """A value that JSON takes: a number that is not finite is its name."""
  if isinstance(value, float | np.floating):
    return float(value) if np.isfinite(value) else str(value)
  return value


def _cell(value: Any) -> str:
  if isinstance(value, bool) or not isinstance(value, float | int):
    return str(value).replace("|", "\\|")
  if isinstance(value, int) or abs(value) >= 100:
    return f"{value:.0f}"
  return f"{value:.3g}"


def table(rows: list[measuring.Row]) -> list[str]:
  """The rows as a table in Markdown; columns in the order in which they first occur."""
  columns = list(dict.fromkeys(key for row in rows for key in row))
  if "error" in columns:
    columns.append(columns.pop(columns.index("error")))
  lines = [columns, ["---"] * len(columns)]
  lines += [[_cell(row[key]) if key in row else "" for key in columns] for row in rows]
  return ["| " + " | ".join(line) + " |" for line in lines]


def document(record: dict[str, Any]) -> str:
  """The page of a record {"facts", "parts"}."""
  about = record["facts"]
  lines = [f"# {about['device']}, {about['date']}", "", f"    {about['command']}", ""]
  lines += [", ".join(f"{k} {v}" for k, v in about.items() if k not in ("date", "command"))]
  lines += ["", "Images/s are of the median round; GB are what the compiler counts for a program;",
            "`compile s` is wall time with up to four programs compiled at once."]  # fmt: skip
  shown = any("MFU" in row for part in record["parts"].values() for row in part["rows"])
  if about["tiny"]:
    lines += ["", "Small networks, a step or two of each: **the figures say nothing.**"]
  if not shown:
    lines += ["", f"The peak of {about['device']!r} is not in `peaks.py`, or nothing was measured "
              "against it: no MFU."]  # fmt: skip
  for name, part in record["parts"].items():
    lines += ["", f"## {name} ({part['seconds']:.0f} s)", ""]
    lines += [*part["about"].splitlines()[:1], ""]
    lines += table(part["rows"]) if part["rows"] else ["Nothing was measured."]
    if part.get("device_peak_bytes"):
      lines += ["", f"Most device memory so far: {part['device_peak_bytes'] / 1e9:.1f} GB."]
    if part["error"]:
      lines += ["", f"The part ended early: {part['error']}"]
  return "\n".join(lines) + "\n"


def file_name(device_kind: str) -> str:
  """ "accelerator_DEVICE", in lower-case letters, digits and underscores."""
  return "accelerator_" + re.sub(r"[^a-z0-9]+", "_", device_kind.lower()).strip("_")


def write(record: dict[str, Any], folder: pathlib.Path) -> None:
  """The page, and JSON beside it; a reader never sees half of a file."""
  path = folder / file_name(record["facts"]["device"])
  texts = {".md": document(record), ".json": json.dumps(record, indent=1, default=plain)}
  for suffix, text in texts.items():
    unfinished = path.with_suffix(suffix + ".part")
    unfinished.write_text(text)
    unfinished.replace(path.with_suffix(suffix))


def run(
  names: list[str], scale: programs_lib.Scale, seconds: float, folder: pathlib.Path | None,
  command: str,
) -> dict[str, Any]:  # fmt: skip
  """Runs parts; a part that fails is recorded, and the others go on.

  Args:
    names: of the parts, in the order in which they run.
    scale: full or tiny.
    seconds: for all of them, shared out by `SHARES`; what a part leaves goes to the next. Nothing
      new is begun after a part's time; what is under way, above all a compilation, ends first.
    folder: for the results; None writes none.
    command: that was given.
  """
  record: dict[str, Any] = {"facts": facts(command, scale), "parts": {}}
  print(", ".join(f"{k} {v}" for k, v in record["facts"].items()), flush=True)
  whole = sum(accelerator_parts.SHARES[name] for name in names)
  deadline = time.monotonic()
  for name in names:
    deadline += seconds * accelerator_parts.SHARES[name] / whole
    _run_part(record, name, scale, deadline, folder)
  return record


def _run_part(
  record: dict[str, Any], name: str, scale: programs_lib.Scale, deadline: float,
  folder: pathlib.Path | None,
) -> None:  # fmt: skip
  begin = time.monotonic()
  module = accelerator_parts.load(name)
  part = {"about": module.__doc__, "seconds": 0.0, "rows": [], "error": None}
  record["parts"][name] = part
  print(f"\n{name}: {module.__doc__.splitlines()[0]}", flush=True)

  def finished(row: measuring.Row | None) -> None:
    part["seconds"] = time.monotonic() - begin
    if row is not None:
      part["rows"].append({key: plain(value) for key, value in row.items()})
      print(", ".join(f"{k} {_cell(v)}" for k, v in row.items()), flush=True)
    if folder is not None:
      write(record, folder)

  try:
    module.run(scale, measuring.Log(deadline, finished))
  except Exception as e:
    part["error"] = measuring.short(e)
    print(f"{name} ended early: {part['error']}", file=sys.stderr, flush=True)
  stats = jax.devices()[0].memory_stats() or {}
  part["device_peak_bytes"] = stats.get("peak_bytes_in_use")  # of the process so far
  finished(None)


def failures(record: dict[str, Any]) -> list[str]:
  """What went wrong: parts that ended early, and families beyond the tolerance."""
  parts = record["parts"].items()
  found = [f"{name}: {part['error']}" for name, part in parts if part["error"]]
  found += [
    f"parity: {row['network']} in {row['dtype']} is beyond the tolerance"
    for _, part in parts for row in part["rows"] if row.get("within") is False
  ]  # fmt: skip
  return found
