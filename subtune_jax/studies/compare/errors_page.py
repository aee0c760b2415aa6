"""The part of a page that shows errors: confusion matrices, worst errors, labels to look at."""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from subtune_jax.report import document as document_lib
from subtune_jax.report import words
from subtune_jax.report.document import Cell, Figure, Part, Section, Table, Text
from subtune_jax.statistics import classification
from subtune_jax.studies.compare import chosen, errors, errors_figures
from subtune_jax.studies.compare import record as record_lib

_FEW = 8  # classes up to which every test set has a matrix of its own
_OBVIOUS = 4  # classes up to which the matrix itself is the list of pairs
_MOST_SETS = 12  # matrices
_LISTED = 60  # rows of a table of images


def parts(run: record_lib.Run) -> list[Part]:
  """All of it, of the network that validation chose; galleries where the run saved images."""
  row = chosen.training(run.record)
  answers = {name: chosen.answers_on(run, row, name) for name in run.tests}
  images = errors.load(run.workdir)
  found: list[Part] = _confusion(run, row, answers)
  first = run.record["data"]["id"]
  galleries = {
    name: figure for name, own in answers.items()
    if (figure := _worst(run, row, name, own, images.get(name))) is not None
  }  # fmt: skip
  if first in galleries:
    found.append(galleries.pop(first))
  if galleries:
    found.append(Section("Worst errors on the other test sets", [*galleries.values()], folded=True))
  labels = _labels(run, row, images.get(errors.LABELS))
  return found if labels is None else [*found, labels]


def network(run: record_lib.Run, row: chosen.Row) -> str:
  """Which network it is: "LP-FT, seed 2"."""
  return f"{run.titles[row['method']]}, seed {row['seed']}"


def _confusion(
  run: record_lib.Run, row: chosen.Row, answers: Mapping[str, chosen.Answers]
) -> list[Part]:
  """The matrices; where they are large, that of the other test sets is folded."""
  names = run.record["data"]["class_names"]
  short = record_lib.short_names(list(answers))
  counts = {name: _counts(own, len(names)) for name, own in answers.items()}
  first, *others = counts
  drawn = [errors_figures.Confusion(f"{short[first]} (in distribution)", counts[first], names)]
  if len(names) <= _FEW and len(others) < _MOST_SETS:
    drawn += [errors_figures.Confusion(short[name], counts[name], names) for name in others]
  elif others:
    title = short[others[0]] if len(others) == 1 else f"the other {len(others)} test sets together"
    pooled = np.sum([counts[name] for name in others], axis=0)
    drawn.append(errors_figures.Confusion(title, pooled, names))
  many = any(errors_figures.condensed(own).rest for own in drawn)
  caption = (
    f"Of {network(run, row)}, which validation chose{_folder(run)}. A row: the test images of a "
    "class, their number in brackets. A column: the answer. Blue: right; orange: wrong; darker: a "
    "larger share of the class."
  )
  if many:
    caption += " Drawn are the classes with the most errors; all others are one row and one column."
  alt = f"Confusion matrix of {network(run, row)}: true classes against answers."
  title, large = "What is taken for what", len(names) > errors_figures.NUMBERED
  tables = [_pairs(own) for own in drawn] if len(names) > _OBVIOUS else []
  shown = [
    ("confusion", title, errors_figures.confusions(drawn[:1] if large else drawn), alt, caption)
  ]
  if large and len(drawn) > 1:
    figure, title = errors_figures.confusions(drawn[1:]), f"{title}: {drawn[1].title}"
    shown.append(("confusion_ood", title, figure, alt, "As above."))
  first, *more = document_lib.rendered(shown)
  folded = [Section(own.title, [own], folded=True, page_only=True) for own in more]
  return [dataclasses.replace(first, parts=tables), *folded]


def _counts(answers: chosen.Answers, num_classes: int) -> np.ndarray:
  return classification.confusion(answers.predicted, answers.labels, num_classes)


def _pairs(own: errors_figures.Confusion) -> Section:
  """The most confused classes of a matrix."""
  totals = own.counts.sum(1)
  rows = [
    [own.names[i], own.names[j], f"{n:,} of {totals[i]:,}", f"{words.percent(n / totals[i])} %"]
    for i, j, n in errors.pairs(own.counts)
  ]
  header = ["Class", "Taken for", "Images", "Of the class"]
  tables = [Table(header, rows, page_only=True)] if rows else []
  return Section(f"Most often confused: {own.title}", tables, level=3, page_only=True)


def _folder(run: record_lib.Run) -> str:
  best = run.record.get("best")
  return f" (the model folder {best['folder']}/)" if best else ""


def _worst(
  run: record_lib.Run, row: chosen.Row, name: str, answers: chosen.Answers,
  stored: record_lib.TestImages | None,
) -> Figure | None:  # fmt: skip
  """The errors of highest loss on a test set; None where there are none, or no images of them."""
  short = record_lib.short_names(list(run.tests))[name]
  wrong = int((answers.predicted != answers.labels).sum())
  caption = (
    f"The highest losses among the {words.count(wrong, 'error')} of {network(run, row)} on "
    f"{len(answers.labels):,} images, the classes taking turns. Above: the true class. Below: the "
    "answer and the probability given to it, then that of the true class."
  )
  title, file = f"Worst errors: {short}", f"errors_{words.file_name(short)}"
  return _gallery(run, file, title, caption, answers, errors.wrong(answers), stored)


def _labels(
  run: record_lib.Run, row: chosen.Row, stored: record_lib.TestImages | None
) -> Figure | None:
  """Labelled images whose label may be wrong."""
  labelled = chosen.answers_on_labelled(run, row)
  if labelled is None:
    return None
  answers, crossed = labelled
  found, count = errors.suspects(answers), f"{len(answers.labels):,}"
  which = f"{count} training and validation images" if crossed else f"{count} validation images"
  who = run.titles[row["method"]]
  how = "a linear probe by least squares, cross-validated in five folds," if crossed else who
  doubted = f"{words.count(len(found), 'label')} {words.verb(len(found))} doubted"
  caption = (
    f"Of {which}, {doubted} by {how} which did not train on the image: it answers "
    "otherwise, and another class gets at least the probability that the images of that class get "
    "on average (confident learning, Northcutt et al. 2021). Shown: the highest losses, the "
    "classes taking turns. Some are hard, some have a wrong label: look at these first. Above: the "
    "label. Below: the answer and its probability, then that of the label."
  )
  return _gallery(run, "labels", "Labels to look at", caption, answers, found, stored)


def _gallery(
  run: record_lib.Run, file: str, title: str, caption: str, answers: chosen.Answers,
  places: np.ndarray, stored: record_lib.TestImages | None,
) -> Figure | None:  # fmt: skip
  """The images that are stored of those at `places`, and a list of all of them."""
  if stored is None:
    return None
  names = run.record["data"]["class_names"]
  kept = dict(zip(stored.ids, stored.images, strict=True))
  shown = [p for p in errors.in_turns(answers, places) if answers.ids[p] in kept]
  if not shown:
    return None
  images = np.stack([kept[answers.ids[place]] for place in shown])
  drawn = errors_figures.gallery(images, answers, shown, names)
  alt = f"{title}: {len(shown)} images with their class and the answer; they are listed below."
  (made,) = document_lib.rendered([(file, title, drawn, alt, caption)])
  return dataclasses.replace(made, parts=[_listed(answers, places, names)])


def _listed(answers: chosen.Answers, places: Sequence[int], names: Sequence[str]) -> Section:
  """The images by their names at the source."""
  rows = []
  for place in places[:_LISTED]:
    truth, guess = int(answers.labels[place]), int(answers.predicted[place])
    rows.append([
      Cell(str(answers.ids[place]), code=True),
      names[truth], errors_figures.probability(answers, place, truth),
      names[guess], errors_figures.probability(answers, place, guess),
    ])  # fmt: skip
  more = len(places) - len(rows)
  notes = [Text(f"{more:,} more are not listed.", tone="quiet")] if more else []
  header = ["Image", "Class", "Probability", "Answer", "Probability"]
  return Section("Their names", [Table(header, rows), *notes], folded=True, page_only=True)
