"""Chooses the pictures to label next, and takes the labels in.

  python -m subtune_jax.label runs/parts/final/best new_photos --out=to_label.csv --count=50
  python -m subtune_jax.label to_label.csv --into=folder:/path/to/parts

The first writes to_label.csv, whose column label is to be filled in, and to_label.html, a page with
the pictures. The second adds what was filled in to a folder of images, for the next training: as
training images in its labels.csv; what validates and tests stays as it was. Exit code 0, or 2 and
one line where the input is wrong.
"""

import argparse
from collections.abc import Sequence
import pathlib

import numpy as np

from subtune_jax import acquisition, console, files
from subtune_jax.data import choices
from subtune_jax.deploy import asking, folder, labelling, pictures
from subtune_jax.models import compile_cache
from subtune_jax.report import charts, document, html, style, words
from subtune_jax.studies.compare import figures as tiles_lib

_A_FIGURE = 24  # pictures


def _parser() -> argparse.ArgumentParser:
  parser = console.Parser("python -m subtune_jax.label", __doc__)
  parser.add_argument("given", nargs="+", metavar="MODEL_FOLDER PICTURES | CSV",
                      help="a model folder, then files, folders or patterns in quotes; or a CSV "
                      "that was filled in")  # fmt: skip
  parser.add_argument("--out", type=pathlib.Path, help="the .csv to write")
  parser.add_argument("--count", type=int, default=50, help="how many pictures (50)")
  parser.add_argument("--rule", default="margin", help=f"one of {', '.join(acquisition.RULES)} "
                      "(margin)")  # fmt: skip
  parser.add_argument("--seed", type=int, default=0, help="of the rules that draw (0)")
  parser.add_argument("--into", help="a folder of images that gets the labels")
  parser.add_argument("--new_classes", action="store_true", help="labels may be classes that the "
                      "folder does not have")  # fmt: skip
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Asks, or takes the answers in."""
  given = _parser().parse_args(argv)
  with console.reported():
    if given.into is not None:
      _take(given)
    else:
      _ask(given)


def _take(given: argparse.Namespace) -> None:
  if len(given.given) != 1 or given.out is not None:
    raise ValueError("--into takes one CSV that was filled in, and no --out")
  path = pathlib.Path(given.given[0])
  if not path.is_file():
    raise ValueError(f"there is no file {path}; give the CSV that was filled in")
  answers = labelling.read(path)
  added = labelling.add(answers, given.into, new_classes=given.new_classes)
  counts = ", ".join(f"{count} {label}" for label, count in added.items())
  empty = f"; {words.count(answers.num_empty, 'row')} without a label left out"
  total = words.count(sum(added.values()), "training image")
  print(f"{given.into}: {total} added ({counts}){empty if answers.num_empty else ''}")


def _ask(given: argparse.Namespace) -> None:
  choices.check("rule", given.rule, acquisition.RULES)
  if given.out is None or given.out.suffix.lower() != ".csv" or len(given.given) < 2:
    raise ValueError("give a model folder, pictures and --out=NAME.csv, or a CSV and --into=FOLDER")
  if given.count < 1:
    raise ValueError(f"count is {given.count}; give at least 1")
  compile_cache.enable()
  classifier = folder.load(given.given[0])
  found = pictures.find(given.given[1:])
  questions, broken = asking.ask(classifier, found, given.rule, given.count, given.seed)
  asking.write_csv(given.out, questions)
  page = given.out.with_suffix(".html")
  made = _page(questions, broken, len(found), given, classifier.class_names)
  files.write_atomically(page, html.render(made).encode())
  left_out = f"; {len(broken)} cannot be read" if broken else ""
  print(
    f"{given.out}: {len(questions)} of {len(found)} pictures to label, by {given.rule}{left_out}; "
    f"with the pictures: {page}"
  )


def _page(
  questions: Sequence[asking.Question], broken: Sequence[str], num_found: int,
  given: argparse.Namespace, class_names: Sequence[str],
) -> document.Document:  # fmt: skip
  rule = acquisition.RULES[given.rule]
  classes = ", ".join(class_names) if len(class_names) <= 60 else f"{len(class_names)} classes"
  parts: list[document.Part] = [
    document.Text(
      f"Fill in the column label of {given.out.name}, one of the classes: {classes}. Then: "
      f"subtune label {given.out.name} --into=FOLDER."
    ),
    document.Text(
      f"By {rule.title.lower()}, the most wanted first; score: {rule.score}. Under each picture: "
      "its row in the table, the file, the network's answer with its probability, the score."
    ),
    *(_gallery(questions, begin, given.out.name) for begin in range(0, len(questions), _A_FIGURE)),
    document.Section("Pictures that cannot be read", [document.Bullets(broken)] if broken else []),
  ]
  subtitle = f"{len(questions)} of {num_found:,} pictures, by {given.given[0]}"
  return document.Document("Pictures to label", subtitle, parts)


def _gallery(questions: Sequence[asking.Question], begin: int, table: str) -> document.Figure:
  """A figure of some of the pictures."""
  own = questions[begin : begin + _A_FIGURE]
  drawn, tiles = tiles_lib.image_tiles(np.stack([each.image for each in own]), 3)
  for number, (axes, each) in enumerate(zip(tiles, own, strict=True), begin + 1):
    name = words.shorten(pathlib.Path(each.file).name, 26)
    sure = f"{words.shorten(each.prediction, 17)} {words.percent(each.probability)} %"
    lines = [(name, style.MUTED), (sure, style.INK), (f"score {each.score:.3g}", style.MUTED)]
    tiles_lib.label_tile(axes, f"{number}", lines)
  title = f"{begin + 1} to {begin + len(own)}"
  alt = "Pictures to label, with the network's answers."
  caption = f"Rows {title} of {table}, as the network reads them."
  return document.Figure(f"pictures_{begin}", title, alt, caption, charts.png(drawn))


if __name__ == "__main__":
  main()
