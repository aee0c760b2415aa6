"""Lists the data sets that are here, or looks at one before a run does.

  python -m subtune_jax.data_listing
  python -m subtune_jax.data_listing folder:/path/to/images emoji_domains/fluent

With names: the table and the warnings that a run on the first would begin with, tested on the
others too. Exit code 0, or 2 and one line where something is wrong.
"""

import argparse
from collections.abc import Iterator, Sequence

from subtune_jax import console, data
from subtune_jax.report import terminal
from subtune_jax.runner import examples
from subtune_jax.studies import data_table
from subtune_jax.studies.compare import config as compare_config

_PIXELS = 32  # images are loaded this large; the table gives the size of a folder's files


def _parser() -> argparse.ArgumentParser:
  parser = console.Parser("python -m subtune_jax.data_listing", __doc__)
  parser.add_argument("names", nargs="*", metavar="NAME", help="data sets, as a config takes them")
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the list or the table."""
  given = _parser().parse_args(argv)
  with console.reported():
    print(table(*given.names) if given.names else listing())


def listing() -> str:
  """Names of the data sets whose files are here, and how many more are known."""
  here = list(_here())
  more = len(data.names()) - len(here)
  return "\n".join((
    *here,
    f"and any folder of images, as {data.folder.EXAMPLE}; {more} more are known and not here: "
    "python -m subtune_jax.data.prepare --list",
  ))  # fmt: skip


def _here() -> Iterator[str]:
  for name in data.names():
    try:
      data.require(name)
    except (OSError, ValueError):
      continue
    yield name


def table(name: str, *others: str) -> str:
  """What a run says of its sets before it trains.

  Args:
    name: of the set to train on.
    others: of sets to test on.

  Raises:
    ValueError: what a run on them would raise.
  """
  config = compare_config.default()
  config.data.train, config.data.ood = name, tuple(others)
  config.data.image_size = _PIXELS
  train, validation, _, _ = examples.load_data(config)
  tests, notes = examples.load_tests(config, train.class_names)
  return terminal.render(data_table.report((train, validation), tests, notes))


if __name__ == "__main__":
  main()
