"""The commands of the documentation: the README, docs/, and the docstrings of configs/."""

from collections.abc import Iterator
import re
import shlex
from typing import NamedTuple

from tests.config_files import CONFIGS, ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_MAIN = re.compile(r"python -m subtune_jax\.main((?:\\\n|[^\n#`])*)")
_OTHER = re.compile(r"python -m (subtune_jax\.(?!main)[\w.]+)([^\n#`]*)")


class Command(NamedTuple):
  """A command line of `subtune_jax.main`.

  Attributes:
    page: the file that has it.
    config: as given, such as "configs/vtab.py".
    argument: what stands behind the config's colon, or "".
    fields: field -> value, as given.
  """

  page: str
  config: str
  argument: str
  fields: dict[str, str]

  def __str__(self) -> str:
    fields = " ".join(f"{name}={value}" for name, value in self.fields.items())
    return f"{self.page}:{self.config}:{self.argument} {fields}"[:100].strip()


def commands() -> Iterator[Command]:
  """All of them, each once."""
  seen = set()
  for path in (*PAGES, *CONFIGS):
    for found in _MAIN.finditer(path.read_text()):
      parts = shlex.split(re.sub(r"\\\n\s*", "", found.group(1)))
      options = dict(part.split("=", 1) for part in parts if part.startswith("--"))
      for own in ("--workdir", "--coordinator", "--num_processes", "--process_id"):
        options.pop(own, None)
      if "--config" not in options:
        continue
      config, _, argument = options.pop("--config").partition(":")
      fields = {option.removeprefix("--config."): value for option, value in options.items()}
      key = config, argument, *fields.items()
      if key not in seen:
        seen.add(key)
        yield Command(path.name, config, argument, fields)


def others() -> list[tuple[str, ...]]:
  """Command lines of the other modules on the pages: module and arguments, each once."""
  found = (match for path in PAGES for match in _OTHER.finditer(path.read_text()))
  return sorted({(match.group(1), *shlex.split(match.group(2))) for match in found})
