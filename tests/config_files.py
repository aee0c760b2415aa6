"""The files of configs/, loaded as modules."""

import importlib.util
import pathlib
from types import ModuleType

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def module(file: str | pathlib.Path) -> ModuleType:
  """The module of a file such as "configs/vtab.py"."""
  path = ROOT / file
  spec = importlib.util.spec_from_file_location(path.stem, path)
  loaded = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(loaded)
  return loaded


def get_config(file: str | pathlib.Path, argument: str = ""):
  """Its config, with the argument behind the colon if there is one."""
  make = module(file).get_config
  return make(argument) if argument else make()
