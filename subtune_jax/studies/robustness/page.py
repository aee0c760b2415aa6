"""The report of a robustness study: a comparison's, LP-FT's tables and figures, and an answer."""

import os
import pathlib

import numpy as np

from subtune_jax.report import document as document_lib
from subtune_jax.report import estimate, html, words
from subtune_jax.report.document import Bullets, Cell, Section, Table, Text
from subtune_jax.statistics import criteria
from subtune_jax.studies import fields, sections
from subtune_jax.studies.compare import errors_page
from subtune_jax.studies.compare import page as compare_page
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import summary as summary_lib
from subtune_jax.studies.robustness import curve_figures
from subtune_jax.studies.robustness import figures as figures_lib
from subtune_jax.studies.robustness import record as study_lib

Study = study_lib.Study
FULL, LP_FT = "ft", "lp_ft"
NOT_A_RESULT = (
  "The oracle chose learning rate and epoch by the labels of the out-of-distribution test sets. "
  "This is not a result that a user could get."
)
_EXPLAINED = {
  "last": "Every training runs to its last epoch; the learning rate is that of the {best} mean "
  "validation {title}.",
  "early_stopping": "Every training is taken at its epoch of the {best} validation {title}; then "
  "the learning rate likewise.",
  study_lib.ORACLE: NOT_A_RESULT,
}
_STRENGTHS = {
  "clear": "Clear: validation decides.",
  "weak": "Weak: validation does not decide between {among}; the argument below does.",
  "undecided": "Undecided: nothing here decides between {among}. The one named has the highest "
  "validation accuracy.",
}
_TABLE_NOTE = (
  "Small: 90 % and 95 % intervals of each accuracy (in brackets: 95 %). !: edge "
  "of the grid. Epoch: of the last stage, one number per seed "
  "where they differ. Weights moved: by the whole training. Features moved: relative distortion of "
  "the last block's features at the epoch chosen, on test images."
)
_AFTER_NOTE = (
  "Accuracy of the method recommended minus that of each other one, on the same test images, with "
  "95 % intervals. The recommendation has read none of these labels."
)


def _setting(study: Study, rule: str, method: str) -> Cell:
  """The rate chosen, or the probe's strength, which the probe searched itself."""
  entry, chosen = study.method(method), study.selection(rule, method)
  if entry["setting"] != "learning_rate":
    return document_lib.setting(
      entry["setting"], entry["learning_rate"], at_edge=entry["grid_edge"]
    )
  return document_lib.setting(entry["setting"], chosen["learning_rate"], at_edge=chosen["at_edge"])


def _epochs(study: Study, rule: str, method: str) -> Cell:
  """Epochs chosen, by seed, one number where they agree; how many trainings, if fewer than most."""
  numbers = study.selection(rule, method)["epochs"]
  most = max(len(study.selection(rule, name)["epochs"]) for name in study.methods)
  text = ", ".join(map(str, numbers if len(set(numbers)) > 1 else numbers[:1]))
  return Cell(text, () if len(numbers) == most else (words.count(len(numbers), "training"),))


def _weights_moved(study: Study, rule: str, method: str) -> str:
  rows = [fields.number(row["moved"]) for row in study.picked(rule, method)]
  return f"{figures_lib.short_percent(100 * float(np.mean(rows)))} %"


def _features_moved(study: Study, rule: str, method: str) -> Cell:
  sides = {}
  for side in ("ID", "OOD")[: 2 if study.ood else 1]:
    rows = [
      study.distortion(epoch["distortion"], "relative", ood=side == "OOD")
      for epoch in study.picked_epochs(rule, method)
    ]
    sides[side] = f"{figures_lib.short_percent(100 * float(np.mean(rows)))} %"
  text = "\n".join(f"{moved} {side}" for side, moved in sides.items())
  return Cell(text, plain=" / ".join(sides.values()))


def _accuracy(score: study_lib.Row) -> Cell:
  """A mean, its 90 % and its 95 % interval in small."""
  notes = []
  for level in ("90", "95"):
    low, high = (words.percent(end) for end in score[level])
    notes.append(f"{level}: {low}\N{EN DASH}{high}")
  return Cell(
    words.percent(score["mean"]), tuple(notes), plain=words.accuracy(study_lib.estimate(score))
  )


def _rule_table(study: Study, rule: str) -> Table:
  sides = (study.id, study.ood_column)
  header = [Cell("Accuracy, %", plain=f"{study_lib.RULES[rule].lower()}, %")]
  header += [Cell(title, page_only=key not in sides) for key, title in study.columns.items()]
  moved = "features ID / OOD" if study.ood else "features ID"
  header += [
    Cell("Validation", plain="validation"),
    Cell("Setting chosen", plain="setting  "),
    Cell("Epoch", plain="epoch"),
    Cell("Weights moved", plain="weights"),
    Cell("Features moved", plain=moved),
  ]
  names, rows = document_lib.methods(study.titles), []
  for method in study.methods:
    scores = study.selection(rule, method)["accuracy"]
    rows.append(
      [
        names[method],
        *(_accuracy(scores[column]) for column in study.columns),
        words.percent(scores[study.validation]["mean"]),
        _setting(study, rule, method),
        _epochs(study, rule, method),
        _weights_moved(study, rule, method),
        _features_moved(study, rule, method),
      ]
    )
  return Table(header, rows)


def _oracle_answer(study: Study) -> list[str]:
  """What the oracle's table answers: could early stopping have saved full fine-tuning?"""
  lines = [
    "It answers one question: could early stopping, with the best epoch and rate that there were, "
    "have saved full fine-tuning out of distribution?"
  ]
  if FULL in study.methods and study.ood:
    column, honest = study.ood_column, study.rule
    best = study.selection(study_lib.ORACLE, FULL)["accuracy"][column]
    own = study.selection(honest, FULL)["accuracy"][column]
    text = f"On {study.title_of(column)} {study.titles[FULL]} reaches {_with_interval(best)} so "
    text += f"chosen, and {_with_interval(own)} chosen without test labels"
    if LP_FT in study.methods:
      other = study.selection(honest, LP_FT)["accuracy"][column]
      text += f"; {study.titles[LP_FT]} reaches {_with_interval(other)} without test labels"
    lines.append(f"{text}. The intervals are those of each accuracy, not of their difference.")
  return lines


def _with_interval(score: study_lib.Row) -> str:
  value = study_lib.estimate(score)
  low, high = words.percent(value.low), words.percent(value.high)
  return f"{words.percent(value.mean)} % [{low}, {high}]"


def rules(study: Study) -> Section:
  """A table per selection rule; the oracle's is framed and says what it is."""
  parts = [Text(_TABLE_NOTE)]
  for rule in study.rules:
    table = _rule_table(study, rule)
    if rule != study_lib.ORACLE:
      shown = " (the rule of the figures)" if rule == study.rule else ""
      chosen_by = criteria.of(study.record["config"])
      explained = Text(_EXPLAINED[rule].format(best=chosen_by.best, title=chosen_by.title))
      parts.append(Section(f"{study_lib.RULES[rule]}{shown}", [explained, table], level=3))
      continue
    answers = [Text(line) for line in _oracle_answer(study)]
    title = "Oracle: chosen by test labels, not a result"
    marked = Text("", lead=_EXPLAINED[rule], tone="edge")
    parts.append(Section(title, [marked, *answers, table], level=3, warning=True))
  return Section("Tables in the paper's form", parts)


def strength_text(study: Study) -> str:
  """How sure the recommendation is, in a sentence."""
  found = study.entry["recommendation"]
  among = words.listed([study.titles.get(name, name) for name in found["among"]])
  return _STRENGTHS.get(found["strength"], found["strength"]).format(among=among)


def against_others(
  run: compare_record.Run, summary: summary_lib.Summary, method: str
) -> dict[str, dict[str, estimate.Estimate]]:
  """Other method -> column -> accuracy of `method` minus that of the other, paired."""
  if summary.reference != method:
    summary = summary_lib.summarize(run, reference=method, num_resamples=summary.num_resamples)
  return {
    other: {key: -difference for key, difference in columns.items()}
    for other, columns in summary.differences.items()
  }


def fared_text(study: Study, against: dict[str, dict[str, estimate.Estimate]], column: str) -> str:
  """In a sentence: which methods the recommended one was above, below, and undecided against."""
  method = study.titles[study.entry["recommendation"]["method"]]
  verdicts = {
    estimate.HIGHER: "above", estimate.LOWER: "below", estimate.UNDECIDED: "undecided against"
  }  # fmt: skip
  parts = []
  for verdict, word in verdicts.items():
    names = [study.titles[m] for m, found in against.items() if found[column].verdict == verdict]
    if names:
      parts.append(f"{word} {words.listed(names)}")
  return f"On {study.title_of(column)}, {method} is {'; '.join(parts)}."


def recommendation(run: compare_record.Run, summary: summary_lib.Summary, study: Study) -> Section:
  """The answer, its reasons, and how it fared on the test sets afterwards."""
  found = study.entry["recommendation"]
  answer = Text(
    f"{strength_text(study)} No test label was read for this.",
    lead=f"{study.titles[found['method']]}.",
  )
  parts = [answer, Bullets(found["reasons"])]
  against = against_others(run, summary, found["method"])
  if against:
    parts.append(_fared(study, summary, against))
  return Section("Which method should I use?", parts)


def _fared(
  study: Study, summary: summary_lib.Summary, against: dict[str, dict[str, estimate.Estimate]]
) -> Section:
  names = document_lib.methods(study.titles)
  rows = [
    [Cell(f"against {study.titles[other]}", color=names[other].color),
     *(document_lib.difference(differences[column.key]) for column in summary.columns)]
    for other, differences in against.items()
  ]  # fmt: skip
  table = Table(["Difference, points", *(c.title for c in summary.columns)], rows)
  note = _AFTER_NOTE
  if study.rule != "last":
    note += " Here every training is at its last epoch, as under Results."
  sides = dict.fromkeys(filter(None, (study.id, study.ood_column)))
  fared = [Text(fared_text(study, against, key)) for key in sides]
  title = "How it fared on the test sets afterwards"
  return Section(title, [*fared, table, Text(note)], level=3, page_only=True)


def figures(study: Study) -> list[document_lib.Figure]:
  """The figures of the study, rendered; those that its record has nothing for are left out."""
  return document_lib.rendered(_drawn(study))


def _drawn(study: Study) -> list[document_lib.Drawn]:
  """(file name, heading, figure or None, alt text, caption) of each figure, in order."""
  rule = study_lib.RULES[study.rule].lower()
  setting = f"at the setting chosen (rule: {rule})"
  return [
    (
      "id_ood", "In against out of distribution", figures_lib.id_against_ood(study),
      "Scatter of test accuracy in distribution against that out of distribution.",
      f"Faint: every training at its last epoch. Large: {setting}, mean over seeds, with 95 % "
      "intervals. Up and to the right is better on both sides.",
    ),
    (
      "distortion", "Feature distortion", figures_lib.distortion_bars(study),
      "Bars of the relative feature distortion of each method, in and out of distribution.",
      "How far fine-tuning moved what the head reads, |f - f0| on the test images over the mean "
      f"norm of f0, {setting}. Dots: single seeds.",
    ),
    (
      "distortion_blocks", "Distortion by block", figures_lib.distortion_by_block(study),
      "Lines of the relative feature distortion over the blocks, from input to head.",
      f"The same for the output of every block, input (left) to head (right), {setting}. Thin: "
      "single seeds.",
    ),
    (
      "distortion_epochs", "Distortion along training",
      curve_figures.distortion_by_epoch(study),
      "Lines of the feature distortion, and of the linear CKA, by epoch.",
      "Above: the last block's distortion. Below: linear CKA, 1 where features are the pretrained "
      "ones up to rotation and scale. Epoch 0 is the pretrained network. Thin: single seeds.",
    ),
    (
      "interpolation", "From the probe to the fine-tuned network",
      curve_figures.interpolation(study),
      "Curves of accuracy along the line of weights from the probe to the fine-tuned network.",
      "Weights (1 - alpha) probe + alpha fine-tuned, in equal steps of alpha; scales differ. "
      "Ringed: the alpha of the highest validation accuracy, which is how one may choose it. "
      "Fine-tuned: at the last epoch. Thin: single seeds.",
    ),
    (
      "accuracy_epochs", "Accuracy along training", curve_figures.accuracy_by_epoch(study),
      "Test accuracy by epoch in and out of distribution, a panel per method.",
      "Thin: single seeds. Thick: their mean. Single points: stages of one epoch, out of "
      "distribution hollow. Dashed upright line: the start of the next stage.",
    ),
    (
      "rates", "Learning rate", figures_lib.learning_rates(study),
      "Distance moved and accuracies against the learning rate of each method.",
      "At the last epoch. A small rate moves the weights little; LP-FT at a vanishing rate is its "
      "probe (dotted). Dots: single seeds. Methods stand a little apart at one rate.",
    ),
    (
      "probe_steps", "A probe stopped early", curve_figures.probe_steps(study),
      "Accuracy of the probe and after fine-tuning against the number of the probe's steps.",
      "LP-FT at its chosen rate from probes stopped after so many steps, at its last epoch, on the "
      "first seed. Lines: 95 % intervals over groups of test images.",
    ),
  ]  # fmt: skip


def report(run: compare_record.Run, summary: summary_lib.Summary) -> document_lib.Document:
  """The whole report."""
  study = study_lib.of(run.record, f"{run.workdir / fields.RESULTS}")
  common = compare_page.figures(run, summary)
  accuracy = [common.pop("accuracy")] if "accuracy" in common else []
  parts = [
    *compare_page.numbers(summary),
    *accuracy,
    rules(study),
    *figures(study),
    recommendation(run, summary, study),
    *common.values(),
    *errors_page.parts(run),
    compare_page.run_facts(run),
    sections.settings(run.record["config"]),
    sections.attribution(run.record["data"].get("attribution")),
  ]
  subtitle = compare_page.subtitle(run, summary)
  return document_lib.Document(run.record["title"], subtitle, parts)


def write_report(workdir: str | os.PathLike) -> pathlib.Path:
  """Reads the records in `workdir` and writes the page again; see `compare.record.load`."""
  run = compare_record.load(workdir)
  return html.write(workdir, report(run, summary_lib.summarize(run)))
