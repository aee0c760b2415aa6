"""A time says something on an idle machine alone."""

import argparse
import os
import sys

MOST = 0.3  # mean number of running processes over the last minute


def add_option(parser: argparse.ArgumentParser) -> None:
  """Adds --force."""
  parser.add_argument("--force", action="store_true", help="run on a busy machine; proves nothing")


def load(force: bool) -> float:
  """The load now; ends the process where it is too high, unless forced."""
  found = os.getloadavg()[0]
  if found > MOST and not force:
    sys.exit(f"the load is {found:.2f}; a time needs an idle machine (below {MOST}), or --force")
  return found
