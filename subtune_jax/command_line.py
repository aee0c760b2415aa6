"""Reads the command line: every mistake in it is one line that names the fix, and exit code 2."""

import ast
from collections.abc import Iterator
import contextlib
import importlib.util
import pathlib
import signal
import sys
from typing import Any

from absl import flags

from subtune_jax import console, files, nearest, processes
from subtune_jax.runner import workdir

CONFIGS = pathlib.Path("configs")
SHIPPED = pathlib.Path(__file__).parent / "configs"  # the same files, installed
_AGAIN = 1.0  # seconds


@contextlib.contextmanager
def interruptible(command: str) -> Iterator[None]:
  """Ends the process at Ctrl-C: one line with the command that goes on, and code 130.

  At SIGTERM, what a cluster sends before it takes a machine away, a training goes on to the end of
  its epoch, and its state is written; the code is 143.

  Python drops what is raised inside some callbacks, such as those of JAX at garbage collection; so
  the interrupt is raised again until it arrives.
  """

  def stop(number: int, _: Any) -> None:
    if number == signal.SIGTERM and processes.ask_to_stop():
      return
    signal.setitimer(signal.ITIMER_REAL, _AGAIN)
    raise processes.Stopped if processes.asked_to_stop() else KeyboardInterrupt

  show = sys.unraisablehook
  sys.unraisablehook = lambda what: what.exc_type is KeyboardInterrupt or show(what)
  for number in (signal.SIGINT, signal.SIGALRM, signal.SIGTERM):
    signal.signal(number, stop)
  try:
    yield
  except KeyboardInterrupt as e:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # another one ends threads that still work
    stopped = isinstance(e, processes.Stopped)
    how = "stopped by SIGTERM" if stopped else "interrupted"
    sys.stderr.write(f"{how}; this goes on where it stopped: {command}\n")
    sys.exit(143 if stopped else 130)


def _nearest(name: str, known: list[str]) -> str:
  near = nearest.names(name, known, most=1, cutoff=0.0)
  return f"; the nearest is {near[0]}" if near else ""


def help_text(usage: str) -> str:
  """What --help prints: `usage`, the configs with a line each, the options.

  Args:
    usage: the first lines; the docstring of the program.
  """
  lines = [usage.strip(), "", "configs:"]
  here = sorted(CONFIGS.glob("*.py"))
  for path in here or sorted(SHIPPED.glob("*.py")):
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    first, _, _ = doc.partition("\n")
    lines.append(f"  {str(path) if here else path.stem:34}{first}")
  lines += ["", "options:"]
  for flag in flags.FLAGS.flags_by_module_dict()[_program()]:
    lines.append(f"  --{flag.name:32}{flag.help}")
  lines += [f"  {'--config.FIELD=VALUE':34}Any field of the config.", ""]
  return "\n".join(lines)


def _program() -> str:
  """The module that defines the options, as absl calls it."""
  name = flags.FLAGS.find_module_defining_flag("config")
  assert name is not None  # every program here defines it
  return name


def find_config(argument: str) -> str:
  """The "file.py:argument" of "name:argument", where no such file is here but a config of the name
  is: in configs/, or installed with the library."""
  given, colon, rest = argument.partition(":")
  path = pathlib.Path(given)
  if path.is_file():
    return argument
  if path.parent in (pathlib.Path(), CONFIGS):
    for folder in (CONFIGS, SHIPPED):
      file = folder / f"{path.stem}.py"
      if file.is_file() and path.suffix in ("", ".py"):
        return f"{file}{colon}{rest}"
  return argument


def _load_config(argument: str) -> Any:
  """The config of "file.py" or "file.py:argument"."""
  file, _, given = argument.partition(":")
  path = pathlib.Path(file)
  if not path.is_file():
    if str(path) == path.stem:  # a name alone
      known = [p.stem for folder in (CONFIGS, SHIPPED) for p in sorted(folder.glob("*.py"))]
    else:
      known = [str(p) for folder in (path.parent, CONFIGS) for p in sorted(folder.glob("*.py"))]
    console.fail(f"no config file {path}{_nearest(str(path), known)}")
  spec = importlib.util.spec_from_file_location("_config", path)
  if spec is None or spec.loader is None:
    console.fail(f"{path} is no Python file; give a config, NAME.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(given) if given else module.get_config()


def parse(argv: list[str]) -> list[str]:
  """Parses absl flags; for `app.run(..., flags_parser=parse)`."""
  argv = [
    a[: -len(value)] + find_config(value)
    if value and a.lstrip("-") == f"config={value}" else a
    for a in argv for value in [a.partition("=")[2]]
  ]  # fmt: skip
  given = [a.lstrip("-") for a in argv[1:] if a.startswith("-")]
  if {"help", "h", "?"} & set(given):
    program = sys.modules.get(_program(), sys.modules["__main__"])
    sys.stdout.write(help_text(program.__doc__ or ""))
    sys.exit(0)
  given_configs = [a.removeprefix("config=") for a in given if a.startswith("config=")]
  try:
    if given_configs:
      fields = list(files.flatten(workdir.as_json(_load_config(given_configs[-1]))))
      for argument in given:
        name = argument.split("=", 1)[0].removeprefix("config.")
        if argument.startswith("config.") and name not in fields:
          console.fail(f"the config has no field {name!r}{_nearest(name, fields)}")
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, ImportError) as e:
    console.fail(" ".join(str(e).split()))
