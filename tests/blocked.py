"""Runs a script as where few packages are: `python blocked.py PACKAGES SCRIPT [ARGUMENT]...`

PACKAGES are distributions with commas between them. They and what they declare can be imported;
every other installed package raises ModuleNotFoundError, as if it were not there.
"""

import importlib.abc
import importlib.metadata
import re
import runpy
import sys


def normal(name: str) -> str:
  """The name of a distribution as the index compares it."""
  return re.sub(r"[-_.]+", "-", name).lower()


def needed(names: list[str]) -> set[str]:
  """The distributions and what they require, without extras."""
  found, todo = set(), [normal(name) for name in names]
  while todo:
    name = todo.pop()
    if name in found:
      continue
    found.add(name)
    try:
      requirements = importlib.metadata.requires(name) or ()
    except importlib.metadata.PackageNotFoundError:  # for another system or an older Python
      continue
    todo += [
      normal(re.match(r"[\w.-]+", line).group())
      for line in requirements
      if not re.search(r"extra\s*==", line)
    ]
  return found


class Blocker(importlib.abc.MetaPathFinder):
  """Refuses the top-level modules of all other distributions; the one under test is allowed."""

  def __init__(self, allowed: set[str]):
    owners = importlib.metadata.packages_distributions().items()
    self.blocked = {
      module
      for module, names in owners
      if module not in sys.stdlib_module_names and not {normal(name) for name in names} & allowed
    } - {"subtune_jax"}

  def find_spec(self, name, path, target=None):
    del path, target
    if name.partition(".")[0] in self.blocked:
      raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)
    return None


if __name__ == "__main__":
  packages, script, *arguments = sys.argv[1:]
  sys.meta_path.insert(0, Blocker(needed(packages.split(","))))
  sys.argv = [script, *arguments]
  runpy.run_path(script, run_name="__main__")
