"""The command `subtune`: one word for each program of this library.

subtune train --config=quickstart
subtune predict runs/quickstart/best photos --out=predictions.csv
"""

from collections.abc import Sequence
import importlib
import importlib.metadata
import sys

import subtune_jax
from subtune_jax import console, nearest

# Word -> module with a `main(argv)`, and what it is for.
COMMANDS = {
  "train": ("main", "run what a config says: trainings, searches, studies"),
  "predict": ("predict", "classify picture files with a trained network"),
  "label": ("label", "choose the pictures to label next, and take the labels in"),
  "save": ("save_model", "write the model folder of another training of a run"),
  "merge": ("merge", "turn an adapter of PEFT and its base weights into a model folder"),
  "export": ("export", "turn a model folder into a file for another program"),
  "serve": ("serve", "answer over HTTP for one or several tasks"),
  "latency": ("multitask.latency", "time many tasks on one backbone against separate networks"),
  "report": ("report_again", "make the page of a finished run again"),
  "calibrate": ("calibrate", "calibrate stored logits"),
  "models": ("model_listing", "list the backbones, and the blocks of one"),
  "data": ("data_listing", "list the data sets, or look at one before a run does"),
}


def help_text() -> str:
  """What `subtune --help` prints."""
  lines = [*__doc__.strip().splitlines(), "", "commands:"]
  lines += [f"  {word:12}{line}" for word, (_, line) in COMMANDS.items()]
  lines += ["", "`subtune COMMAND --help` has the options of one; --version, versions and device."]
  return "\n".join(lines)


def version() -> str:
  """Versions of this library and of jax, and the device that it computes on."""
  jax = importlib.import_module("jax")
  kinds = sorted({device.device_kind for device in jax.devices()})
  return (
    f"subtune_jax {subtune_jax.__version__}, jax {jax.__version__}, "
    f"{len(jax.devices())} x {', '.join(kinds)}"
  )


def main(argv: Sequence[str] | None = None) -> int | None:
  """Runs the program that the first word names."""
  word, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
  if word in ("--help", "-h", "help"):
    print(help_text())
  elif word == "--version":
    print(version())
  elif word not in COMMANDS:
    near = nearest.names(word, COMMANDS, most=1, cutoff=0.0)
    console.fail(f"no command {word!r}; the nearest is {near[0]} (subtune --help lists them)")
  else:
    module, _ = COMMANDS[word]
    program = importlib.import_module(f"subtune_jax.{module}")
    start = program.start if word == "train" else program.main
    return start(rest)
  return None


if __name__ == "__main__":
  sys.exit(main())
