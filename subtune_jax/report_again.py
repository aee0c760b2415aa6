"""Makes the page of a finished run again, from the files that it left.

  python -m subtune_jax.report_again runs/quickstart

Nothing is trained, and no data set and no weights are read. Exit code 0, or 2 and one line where
there is no finished run or one of its files is damaged.
"""

import argparse
from collections.abc import Sequence
import sys

from subtune_jax import console
from subtune_jax.studies import publish


def _parser() -> argparse.ArgumentParser:
  parser = console.Parser("python -m subtune_jax.report_again", __doc__)
  parser.add_argument("workdir", help="of a finished run, such as runs/quickstart")
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Writes report.html and figures/*.png into the workdir, and prints the text."""
  given = _parser().parse_args(argv)
  with console.reported():
    publish.publish(publish.document_of(given.workdir), given.workdir, sys.stdout)


if __name__ == "__main__":
  main()
