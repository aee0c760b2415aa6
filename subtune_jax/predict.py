"""Predicts picture files with a trained network.

  python -m subtune_jax.predict runs/quickstart/best photos/ more/*.jpg --out=predictions.csv

The first argument is a model folder, which every run leaves as WORKDIR/best. A picture that cannot
be read is a row that says why. Exit code 0, or 2 and one line where the input is wrong or no
picture could be read.
"""

import argparse
from collections.abc import Sequence
import pathlib
import sys

from subtune_jax import console
from subtune_jax.deploy import folder, pictures
from subtune_jax.models import compile_cache
from subtune_jax.runner import progress


def _parser() -> argparse.ArgumentParser:
  parser = console.Parser("python -m subtune_jax.predict", __doc__)
  parser.add_argument("folder", help="a model folder, such as runs/quickstart/best")
  parser.add_argument("pictures", nargs="+", help="files, folders, or patterns in quotes")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="a .csv or .jsonl to write")
  parser.add_argument("--top_k", type=int, default=1, help="how many classes are named (1)")
  parser.add_argument("--probabilities", action="store_true", help="those of all classes")
  parser.add_argument("--calibrate", action="store_true", help="by the folder's temperature or "
                      "gamma")  # fmt: skip
  parser.add_argument("--batch_size", type=int, default=0, help="pictures at a time; by default "
                      "that of the training, which gives the bits of its evaluation")  # fmt: skip
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Writes the table."""
  given = _parser().parse_args(argv)
  with console.reported():
    _run(given)


def _run(given: argparse.Namespace) -> None:
  compile_cache.enable()
  classifier = folder.load(given.folder)
  if given.batch_size:
    classifier = classifier.with_batch_size(given.batch_size)
  if given.calibrate:
    classifier.check_calibration()
  files = pictures.find(given.pictures)
  names = classifier.class_names
  table = pictures.Table(given.out, names, top_k=given.top_k, probabilities=given.probabilities)
  shown = progress.Shown(len(files), sys.stderr, "picture")
  broken = 0
  for answer in pictures.answers(classifier, files, calibrate=given.calibrate):
    table.write(answer)
    broken += bool(answer.error)
    shown.advance()
  table.close()
  shown.close()
  left_out = f", {broken} of them could not be read: see the column error" if broken else ""
  print(f"{given.out}: {len(files)} pictures{left_out}")
  if broken == len(files):
    console.fail("no picture could be read")


if __name__ == "__main__":
  main()
