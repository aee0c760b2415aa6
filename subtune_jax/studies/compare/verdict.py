"""The answer of a comparison in a few sentences: which method, what it costs, what is not known."""

from subtune_jax.report import estimate, words
from subtune_jax.studies.compare import summary as summary_lib

Summary = summary_lib.Summary
_MANY = 50  # times the test images there are: more than that is no plan


def sentences(summary: Summary) -> list[str]:
  """The answer, the most important first."""
  if len(summary.rows) == 1:
    return [*_alone(summary), *_below_constant(summary), *_folder(summary)]
  inside, outside = _headline_columns(summary)
  found = [_which(summary, inside, "In distribution")]
  if outside is not None:
    same = summary.recommended(inside.key) == summary.recommended(outside.key)
    found.append(_which(summary, outside, f"Out of distribution{' too' if same else ''}"))
  return [*found, *_below_constant(summary), *_power(summary, inside, outside), *_folder(summary)]


def _headline_columns(
  summary: Summary,
) -> tuple[summary_lib.Column, summary_lib.Column | None]:
  """The in-distribution column, and that of all others together, if there are others."""
  inside = next(c for c in summary.columns if c.in_distribution)
  others = [c for c in summary.columns if not c.in_distribution]
  return inside, others[-1] if others else None


def _which(summary: Summary, column: summary_lib.Column, where: str) -> str:
  """Which method to take by one column, and what it costs."""
  titles, leaders = summary.titles, summary.leaders[column.key]
  name = summary.recommended(column.key)
  row = next(own for own in summary.rows if own.name == name)
  own = f"{words.accuracy(row.accuracy[column.key])} %"
  if len(leaders) == 1:
    return f"{where} {titles[name]} is ahead of all others: {own}; {_cost(summary, name)}."
  together = words.listed([titles[leader] for leader in leaders])
  if len(leaders) == len(summary.rows) > 3:
    together = "all methods"
  return (
    f"{where} {together} cannot be told apart by these images; take {titles[name]}, which trains "
    f"the least: {own}; {_cost(summary, name)}."
  )


def _cost(summary: Summary, name: str) -> str:
  row = next(own for own in summary.rows if own.name == name)
  seconds = words.known(row.seconds, lambda n: f"{words.seconds(n)} s a training")
  trained = f"{words.parameters(row.trained_params)} parameters trained"
  memory = words.known(row.step_bytes, lambda n: f"{words.num_bytes(n)} of memory for a step")
  return ", ".join(filter(None, [trained, seconds, memory]))


def _alone(summary: Summary) -> list[str]:
  row = summary.rows[0]
  parts = [f"{words.accuracy(row.accuracy[c.key])} % on {c.title}" for c in summary.columns]
  return [f"{row.title}: {'; '.join(parts)}; {_cost(summary, row.name)}."]


def _below_constant(summary: Summary) -> list[str]:
  """A warning for each set on which no method is above always giving one answer."""
  if summary.constant is None:
    return []
  name, accuracy = summary.constant
  found = []
  for column in (c for c in summary.columns if c.key in summary.sizes):
    above = summary.above_constant[column.key]
    if any(own.verdict == estimate.HIGHER for own in above.values()):
      continue
    lower = all(own.verdict == estimate.LOWER for own in above.values())
    how = "every method is below" if lower else "no method is shown to be above"
    advice = "do not use these networks there" if lower else "they may be of no use there"
    found.append(
      f"On {column.title} {how} always answering {name!r} "
      f"({words.percent(accuracy[column.key].mean)} %): {advice}."
    )
  return found


def _power(
  summary: Summary, inside: summary_lib.Column, outside: summary_lib.Column | None
) -> list[str]:
  """What would decide the comparisons that are undecided."""
  found = []
  for column in (inside, outside):
    if column is None or column.key not in summary.undecided:
      continue
    least_trained, other, needed = summary.undecided[column.key]
    first, second = (summary.titles[name] for name in (other, least_trained))
    images = sum(summary.sizes[name][0] for name in column.tests)
    where = "in distribution" if column.in_distribution else "out of distribution"
    least = f"differences below about {100 * needed.smallest:.0f} points are not seen with "
    if needed.images is None and summary.num_seeds > 1:
      text = f"More seeds, not images, would have to part {first} and {second} {where}: {least}"
      text += f"{images:,} images and {summary.num_seeds} seeds."
    elif needed.images is None or needed.images > _MANY * images:
      text = f"{first} and {second} are too alike {where} for any test set: {least}"
      text += f"{images:,} images."
    else:
      text = (
        f"About {_rounded(needed.images)} test images would decide between {first} and {second} "
        f"{where} ({100 * needed.difference:+.1f} points as observed); there are {images:,}."
      )
    found.append(text)
  return found


def _rounded(number: int) -> str:
  """Two digits are all that is known of it."""
  scale = 10 ** max(0, len(str(number)) - 2)
  return f"{-(-number // scale) * scale:,}"


def _folder(summary: Summary) -> list[str]:
  if summary.chosen is None:
    return []
  method, seed = summary.chosen
  return [
    f"The model folder best/ holds {summary.titles[method]}, seed {seed}, which the validation "
    "images chose; python -m subtune_jax.save_model writes that of another method."
  ]
