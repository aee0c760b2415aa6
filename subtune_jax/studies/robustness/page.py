"""The report of a robustness study: a page, and a text for the terminal.

A comparison's page, with LP-FT's tables and figures, and an answer to "which method?".
"""

from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np

from subtune_jax.report import document, estimate, html, style, terminal
from subtune_jax.report import words as words_lib
from subtune_jax.studies import fields
from subtune_jax.studies.compare import record as compare_record
from subtune_jax.studies.compare import summary as summary_lib
from subtune_jax.studies.robustness import curve_figures as robustness_curves
from subtune_jax.studies.robustness import figures as robustness_plots
from subtune_jax.studies.robustness import record as study_lib
from subtune_jax.studies.search import page as search_page

Study = study_lib.Study
FULL, LP_FT = "ft", "lp_ft"
NOT_A_RESULT = (
  "The oracle chose learning rate and epoch by the labels of the out-of-distribution test sets. "
  "This is not a result that a user could get."
)
_EXPLAINED = {
  "last": "Every training runs to its last epoch; the learning rate is that of the highest mean "
  "validation accuracy.",
  "early_stopping": "Every training is taken at its epoch of the highest validation accuracy; then "
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
  "Small: 90 % and 95 % intervals of each accuracy. Epoch: of the last stage, one number per seed "
  "where they differ. Weights moved: by the whole training. Features moved: relative distortion of "
  "the last block's features at the epoch chosen, on test images."
)
_AFTER_NOTE = (
  "Accuracy of the method recommended minus that of each other one, on the same test images, with "
  "95 % intervals. The recommendation has read none of these labels."
)


def _setting(study: Study, rule: str, method: str) -> tuple[str, bool]:
  """(the rate chosen, or the probe's strength; whether it is at the edge of its grid)."""
  entry, chosen = study.method(method), study.selection(rule, method)
  if entry["setting"] != "learning_rate":  # the probe searched its strength itself
    value = words_lib.setting_value(entry["learning_rate"])
    return f"{words_lib.setting_name(entry['setting'])} {value}", entry["grid_edge"]
  return f"lr {words_lib.setting_value(chosen['learning_rate'])}", chosen["at_edge"]


def _epochs_text(study: Study, rule: str, method: str) -> str:
  """Epochs chosen, by seed; one number where they agree."""
  numbers = study.selection(rule, method)["epochs"]
  return ", ".join(map(str, numbers if len(set(numbers)) > 1 else numbers[:1]))


def _seeds_note(study: Study, rule: str, method: str) -> str:
  """In small, how many trainings a row rests on where others have more; HTML."""
  counts = {name: len(study.selection(rule, name)["epochs"]) for name in study.methods}
  if counts[method] == max(counts.values()):
    return ""
  return f"<small>{counts[method]} training{'s' if counts[method] > 1 else ''}</small>"


def _weights_moved(study: Study, rule: str, method: str) -> str:
  rows = [fields.number(row["moved"]) for row in study.picked(rule, method)]
  return f"{robustness_plots.short_percent(100 * float(np.mean(rows)))} %"


def _features_moved(study: Study, rule: str, method: str, *, ood: bool) -> str:
  rows = [
    study.distortion(epoch["distortion"], "relative", ood=ood)
    for epoch in study.picked_epochs(rule, method)
  ]
  return f"{robustness_plots.short_percent(100 * float(np.mean(rows)))} %"


def _swatch(study: Study, method: str) -> str:
  return html.swatch(style.colors(study.methods)[method]) + html.escape(study.titles[method])


def _accuracy_cell(score: study_lib.Row) -> str:
  """A mean, its 90 % and its 95 % interval in small."""
  text = words_lib.percent(score["mean"])
  for level in ("90", "95"):
    low, high = (words_lib.percent(end) for end in score[level])
    text += f"<small>{level}: {low}\N{EN DASH}{high}</small>"
  return text


def _rule_table(study: Study, rule: str) -> str:
  header = ["Accuracy, %", *(html.escape(title) for title in study.columns.values())]
  header += ["Validation", "Setting chosen", "Epoch", "Weights moved", "Features moved"]
  rows = []
  for method in study.methods:
    scores = study.selection(rule, method)["accuracy"]
    setting, at_edge = _setting(study, rule, method)
    edge = '<small class="edge">! edge of grid</small>' if at_edge else ""
    moved = f"{_features_moved(study, rule, method, ood=False)} ID"
    if study.ood:
      moved += f"<br>{_features_moved(study, rule, method, ood=True)} OOD"
    rows.append([
      _swatch(study, method), *(_accuracy_cell(scores[column]) for column in study.columns),
      words_lib.percent(scores[study.validation]["mean"]), html.escape(setting) + edge,
      _epochs_text(study, rule, method) + _seeds_note(study, rule, method),
      _weights_moved(study, rule, method), moved,
    ])  # fmt: skip
  return html.grid(header, rows, "results")


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
  low, high = words_lib.percent(value.low), words_lib.percent(value.high)
  return f"{words_lib.percent(value.mean)} % [{low}, {high}]"


def rule_sections(study: Study) -> str:
  """A table per selection rule; the oracle's is framed and says what it is."""
  parts = ["<h2>Tables in the paper's form</h2>", f"<p>{html.escape(_TABLE_NOTE)}</p>"]
  for rule in study.rules:
    grid = _rule_table(study, rule)
    explained = html.escape(_EXPLAINED[rule])
    if rule != study_lib.ORACLE:
      shown = " (the rule of the figures)" if rule == study.rule else ""
      parts.append(f"<h3>{study_lib.RULES[rule]}{shown}</h3><p>{explained}</p>{grid}")
      continue
    answers = "".join(f"<p>{html.escape(line)}</p>" for line in _oracle_answer(study))
    parts.append(
      f'<div style="border-left:4px solid {style.WARNING};padding-left:14px;margin-top:28px">'
      f'<h3 class="edge">Oracle: chosen by test labels, not a result</h3>'
      f'<p class="edge best">{explained}</p>{answers}{grid}</div>'
    )
  return "".join(parts)


def strength_text(study: Study) -> str:
  """How sure the recommendation is, in a sentence."""
  found = study.entry["recommendation"]
  among = _listed([study.titles.get(name, name) for name in found["among"]])
  return _STRENGTHS.get(found["strength"], found["strength"]).format(among=among)


def _listed(names: Sequence[str]) -> str:
  """ "A", "A and B", "A, B and C"."""
  return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def against_others(
  run: compare_record.Run, summary: summary_lib.Summary, method: str
) -> dict[str, dict[str, estimate.Estimate]]:
  """Other method -> column -> accuracy of `method` minus that of the other, paired."""
  if summary.reference != method:
    summary = summary_lib.summarize(run, reference=method, num_resamples=summary.num_resamples)
  return {
    other: {key: estimate.Estimate(-d.mean, -d.high, -d.low) for key, d in columns.items()}
    for other, columns in summary.differences.items()
  }


def fared_text(study: Study, against: dict[str, dict[str, estimate.Estimate]], column: str) -> str:
  """In a sentence: which methods the recommended one was above, below, and undecided against."""
  method = study.titles[study.entry["recommendation"]["method"]]
  words = {
    estimate.HIGHER: "above",
    estimate.LOWER: "below",
    estimate.UNDECIDED: "undecided against",
  }
  parts = []
  for verdict, word in words.items():
    names = [study.titles[m] for m, found in against.items() if found[column].verdict == verdict]
    if names:
      parts.append(f"{word} {_listed(names)}")
  return f"On {study.title_of(column)}, {method} is {'; '.join(parts)}."


def recommendation_section(
  run: compare_record.Run, summary: summary_lib.Summary, study: Study
) -> str:
  """The answer, its reasons, and how it fared on the test sets afterwards."""
  found = study.entry["recommendation"]
  reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in found["reasons"])
  parts = [
    "<h2>Which method should I use?</h2>",
    f'<p class="best">{html.escape(study.titles[found["method"]])}</p>',
    f"<p>{html.escape(strength_text(study))} No test label was read for this.</p>",
    f"<ul>{reasons}</ul>",
  ]
  against = against_others(run, summary, found["method"])
  if not against:
    return "".join(parts)
  rows = []
  for other, differences in against.items():
    cells = [f"against {_swatch(study, other)}"]
    for column in summary.columns:
      value = differences[column.key]
      css = "undecided" if value.verdict == estimate.UNDECIDED else "best"
      text = html.escape(words_lib.difference(value))
      cells.append(f'{text}<small class="{css}">{value.verdict}</small>')
    rows.append(cells)
  header = ["Difference, points", *(html.escape(c.title) for c in summary.columns)]
  note = _AFTER_NOTE
  if study.rule != "last":
    note += " Here every training is at its last epoch, as under Results."
  sides = dict.fromkeys(filter(None, (study.id, study.ood_column)))
  fared = "".join(f"<p>{html.escape(fared_text(study, against, key))}</p>" for key in sides)
  parts += ["<h3>How it fared on the test sets afterwards</h3>", fared]
  parts += [html.grid(header, rows, "results"), f"<p>{html.escape(note)}</p>"]
  return "".join(parts)


def figures(study: Study) -> list[document.Figure]:
  """The figures of the study, rendered; those that its record has nothing for are left out."""
  return document.rendered(_drawn(study))


def _drawn(study: Study) -> list[tuple[str, str, Any, str, str]]:
  """(file name, heading, figure or None, alt text, caption) of each figure, in order."""
  rule = study_lib.RULES[study.rule].lower()
  setting = f"at the setting chosen (rule: {rule})"
  return [
    (
      "id_ood", "In against out of distribution", robustness_plots.id_against_ood(study),
      "Scatter of test accuracy in distribution against that out of distribution.",
      f"Faint: every training at its last epoch. Large: {setting}, mean over seeds, with 95 % "
      "intervals. Up and to the right is better on both sides.",
    ),
    (
      "distortion", "Feature distortion", robustness_plots.distortion_bars(study),
      "Bars of the relative feature distortion of each method, in and out of distribution.",
      "How far fine-tuning moved what the head reads, |f - f0| on the test images over the mean "
      f"norm of f0, {setting}. Dots: single seeds.",
    ),
    (
      "distortion_blocks", "Distortion by block", robustness_plots.distortion_by_block(study),
      "Lines of the relative feature distortion over the blocks, from input to head.",
      f"The same for the output of every block, input (left) to head (right), {setting}. Thin: "
      "single seeds.",
    ),
    (
      "distortion_epochs", "Distortion along training",
      robustness_curves.distortion_by_epoch(study),
      "Lines of the feature distortion, and of the linear CKA, by epoch.",
      "Above: the last block's distortion. Below: linear CKA, 1 where features are the pretrained "
      "ones up to rotation and scale. Epoch 0 is the pretrained network. Thin: single seeds.",
    ),
    (
      "interpolation", "From the probe to the fine-tuned network",
      robustness_curves.interpolation(study),
      "Curves of accuracy along the line of weights from the probe to the fine-tuned network.",
      "Weights (1 - alpha) probe + alpha fine-tuned, in equal steps of alpha; scales differ. "
      "Ringed: the alpha of the highest validation accuracy, which is how one may choose it. "
      "Fine-tuned: at the last epoch. Thin: single seeds.",
    ),
    (
      "accuracy_epochs", "Accuracy along training", robustness_curves.accuracy_by_epoch(study),
      "Test accuracy by epoch in and out of distribution, a panel per method.",
      "Thin: single seeds. Thick: their mean. Single points: stages of one epoch, out of "
      "distribution hollow. Dashed upright line: the start of the next stage.",
    ),
    (
      "rates", "Learning rate", robustness_plots.learning_rates(study),
      "Distance moved and accuracies against the learning rate of each method.",
      "At the last epoch. A small rate moves the weights little; LP-FT at a vanishing rate is its "
      "probe (dotted). Dots: single seeds. Methods stand a little apart at one rate.",
    ),
    (
      "probe_steps", "A probe stopped early", robustness_curves.probe_steps(study),
      "Accuracy of the probe and after fine-tuning against the number of the probe's steps.",
      "LP-FT at its chosen rate from probes stopped after so many steps, at its last epoch, on the "
      "first seed. Lines: 95 % intervals over test concepts.",
    ),
  ]  # fmt: skip


def page(
  run: compare_record.Run,
  summary: summary_lib.Summary,
  common: Sequence[document.Figure],
  own: Sequence[document.Figure],
) -> str:
  """The whole page as text.

  Args:
    run: the run.
    summary: its numbers.
    common: the figures that every comparison has.
    own: those of the study.
  """
  record, study = run.record, study_lib.of(run.record)
  sections = {figure.name: html.figure_section(figure) for figure in common}
  body = [
    f"<h1>{html.escape(record['title'])}</h1>",
    f'<p class="quiet">{html.escape(record["name"])}, {html.escape(record["created"])}. '
    f"{html.escape(summary_lib.seeds_text(summary))}, {html.escape(summary_lib.sizes_text(summary))}.</p>",
    html.results_section(summary),
    html.differences_section(summary),
    f"<h3>What the intervals mean</h3><p>{html.escape(summary_lib.interval_text(summary))}</p>",
    sections.pop("accuracy", ""),
    rule_sections(study),
    *(html.figure_section(figure) for figure in own),
    recommendation_section(run, summary, study),
    *sections.values(),
    html.run_facts(run),
    html.stages(run),
    html.settings(record["config"]),
    html.attribution(record["data"].get("attribution")),
  ]
  return html.document(record["title"], body)


def write_page(run: compare_record.Run, summary: summary_lib.Summary) -> pathlib.Path:
  """Writes report.html and figures/*.png into the run's workdir; returns the page's path."""
  common, own = html.figures(run, summary), figures(study_lib.of(run.record))
  return html.write(run.workdir, page(run, summary, common, own), [*common, *own])


def _rule_text(study: Study, rule: str, width: int) -> str:
  sides = [column for column in (study.id, study.ood_column) if column]
  header = [f"{study_lib.RULES[rule].lower()}, %", *(study.title_of(column) for column in sides)]
  header += ["validation", "setting  ", "epoch", "weights", "features ID"]
  header += ["OOD"] if study.ood else []
  rows = []
  for method in study.methods:
    scores = study.selection(rule, method)["accuracy"]
    setting, at_edge = _setting(study, rule, method)
    cells = [words_lib.shorten(study.titles[method], 19)]
    for value in (study_lib.estimate(scores[column]) for column in sides):
      low, high = words_lib.percent(value.low), words_lib.percent(value.high)
      cells.append(f"{words_lib.percent(value.mean)} [{low}, {high}]")
    cells += [words_lib.percent(scores[study.validation]["mean"])]
    cells += [setting + (f" {summary_lib.EDGE_MARK}" if at_edge else "  ")]
    cells += [_epochs_text(study, rule, method), _weights_moved(study, rule, method)]
    cells += [_features_moved(study, rule, method, ood=ood) for ood in (False, True)[: len(sides)]]
    rows.append(cells)
  return terminal.grid(header, rows, width)


def format_text(record: study_lib.Row, width: int = terminal.WIDTH) -> str:
  """The tables of the rules and the recommendation as plain text for a terminal.

  Args:
    record: the whole record, with its entry "robustness".
    width: columns of the terminal.
  """
  study, wide = study_lib.of(record), min(width, 100)
  parts = []
  for rule in study.rules:
    if rule == study_lib.ORACLE:
      parts.append(search_page.wrapped(f"ORACLE. {NOT_A_RESULT}", wide))
    parts.append(_rule_text(study, rule, width))
    if rule == study_lib.ORACLE:
      parts += [search_page.wrapped(line, wide) for line in _oracle_answer(study)[1:]]
  parts.append(search_page.wrapped(
    "In brackets: 95 % intervals. weights: moved by the whole training. features: relative "
    f"distortion of the last block's at the epoch chosen. {summary_lib.EDGE_MARK}: edge of the grid.",
    wide,
  ))  # fmt: skip
  found = study.entry["recommendation"]
  lines = [f"Which method should I use? {study.titles[found['method']]}. {strength_text(study)}"]
  lines += [f"- {reason}" for reason in found["reasons"]]
  parts.append("\n".join(search_page.wrapped(line, wide) for line in lines))
  return "\n\n".join(parts) + "\n"
