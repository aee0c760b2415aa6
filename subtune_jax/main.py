"""The command line: `python -m subtune_jax.main --config=configs/quickstart.py`.

Exit code 0 when the run is done, 1 when another process of it was lost, 2 when something in the
input is wrong, 130 after Ctrl-C, 143 after SIGTERM.
"""

from collections.abc import Sequence
import importlib
import os
import shlex
import sys
from typing import TextIO

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no start-up text where TensorFlow is used
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import app, flags, logging

from subtune_jax import command_line, console, processes

try:
  from ml_collections import config_flags
except ImportError:
  console.fail("the command line needs ml_collections: pip install ml_collections")

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "A file of configs/, e.g. configs/quickstart.py, or quickstart; override as --config.seeds=(0,1)",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results go; by default runs/NAME_OF_CONFIG.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Say what the run would take, and train nothing.")
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None,
  "Of a run in several processes: auto (SLURM, TPU pod, Kubernetes, Open MPI), or HOST:PORT of the "
  "first one.",
)  # fmt: skip
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Their number, beside HOST:PORT.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "The place of this one, from 0.")
_HEARTBEAT = flags.DEFINE_integer(
  "heartbeat_seconds", processes.HEARTBEAT_SECONDS, lower_bound=1,
  help="Seconds that a process may be silent until the others end.",
)  # fmt: skip
_SUBTUNE = ["subtune", "train"]
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error was raised.")


def main(argv: list[str]) -> None:
  """Runs the experiment that the config names."""
  if len(argv) > 1:
    console.fail(f"unexpected argument {argv[1]!r}; options start with --")
  if _CONFIG.value is None:
    console.fail("give a config, e.g. --config=configs/quickstart.py")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  config = _CONFIG.value
  try:
    experiment = importlib.import_module(f"subtune_jax.studies.{config.experiment}.run")
    stream = _join(config.experiment, getattr(experiment, "SEVERAL_PROCESSES", False))
    host_memory = importlib.import_module("subtune_jax.models.host_memory")
    host_memory.keep_freed()  # before the first computation
    workdir = _WORKDIR.value or f"runs/{config.name}"
    if not _DRY_RUN.value:
      experiment.run(config, workdir, command=_command(), stream=stream)
    elif hasattr(experiment, "dry_run"):
      experiment.dry_run(config, workdir, stream=stream)
    else:
      console.fail(f"--dry_run is of the studies compare and search, not of {config.experiment}")
  except (ValueError, OSError) as e:
    if _TRACEBACK.value:
      raise
    console.fail(f"{e}\n(--traceback shows where)")
  except (MemoryError, RuntimeError) as e:
    if processes.lost(e):
      console.end_now(processes.lost(e))
    if _TRACEBACK.value or not console.out_of_memory(e):
      raise
    console.fail(
      f"out of memory: {' '.join(str(e).split())}\nlower batch_size or data.image_size "
      "(--traceback shows where)"
    )


def _join(study: str, several: bool) -> TextIO | None:
  """Joins the other processes if there are any; where this one's words go, None as usual."""
  if _COORDINATOR.value is None:
    for flag in (_NUM_PROCESSES, _PROCESS_ID):
      if flag.value is not None:
        raise ValueError(f"--{flag.name} is {flag.value}; give --coordinator=HOST:PORT as well")
    return None
  if not several:
    raise ValueError(
      f"the study {study} runs in one process (each of its trainings is on one device); leave out "
      "--coordinator. Comparisons run in several."
    )
  processes.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value,
                  heartbeat_seconds=_HEARTBEAT.value)  # fmt: skip
  if processes.is_first():
    return None
  logging.set_verbosity(logging.ERROR)
  return open(os.devnull, "w")


def _command() -> str:
  program = (
    _SUBTUNE if sys.argv[0] == shlex.join(_SUBTUNE) else ["python", "-m", "subtune_jax.main"]
  )
  return shlex.join([*program, *sys.argv[1:]])


def start(argv: Sequence[str] | None = None) -> None:
  """Parses the command line and runs; `argv` are the arguments of `subtune train`."""
  if argv is not None:
    sys.argv = [shlex.join(_SUBTUNE), *argv]
  with command_line.interruptible(_command()):
    app.run(main, flags_parser=command_line.parse)


if __name__ == "__main__":
  start()
