"""What a search found, in sentences: what to train, how sure it is, the greedy paths, the cost."""

from collections.abc import Mapping, Sequence

from subtune_jax.report import words
from subtune_jax.studies import fields
from subtune_jax.studies.search import record as search_record

Row = search_record.Row
_JOINED = "\N{NO-BREAK SPACE}"
_INTERVALS = (
  "All sets were scored on the same held-out images, so two sets differ more surely than their "
  "intervals, which overlap easily, suggest."
)
_DIFFERENCES = (
  "The interval of a difference is Student's, over the folds, with the variance of Nadeau and "
  "Bengio (2003) for folds that share training images; it is that of one comparison by itself."
)
_ONE_SPLIT = "With one held-out split, differences have no interval here."
_OPTIMISM = (
  "The chosen set was picked by these held-out images, among {count}, so its accuracy on them is "
  "too high by what luck added."
)
_COLUMNS = (
  "Fork: millions of multiply-adds that the task adds to the inference of one image when the "
  "network runs anyway. Best: probability of being the best set."
)
_REFERENCES = "the head alone (linear probing)", "all units (full fine-tuning)"


def headline(record: Row) -> list[str]:
  """Which blocks to train, what they gain, and what is left in doubt, a sentence or two each."""
  better = _better_reference(record)
  return [*better, *_chosen(record, "The search chose" if better else "Train")]


def _better_reference(record: Row) -> list[str]:
  """That the head alone, or all units, is better than the chosen set, where it surely is."""
  sets, names = search_record.by_units(record), search_record.unit_names(record)
  chosen, found = sets.get(tuple(record["chosen"])), []
  for units, title in zip(((), names), _REFERENCES, strict=True):
    if chosen is None or units not in sets or sets[units]["mean"] <= chosen["mean"]:
      continue
    if search_record.told_apart(sets[units], chosen):
      found.append((sets[units]["mean"], title))
  if not found:
    return []
  mean, title = max(found)
  text = f"Train {title}: {words.percent(mean)} % on held-out images, more than what was chosen."
  if title == _REFERENCES[0]:
    text += " Sets may need another learning rate (search.learning_rates), or more epochs."
  return [text]


def _chosen(record: Row, verb: str) -> list[str]:
  """What was chosen, after a verb, and how sure that is."""
  sets, names = search_record.by_units(record), search_record.unit_names(record)
  what = "the head alone"
  if record["chosen"]:
    how = "LoRA at " if record.get("lora") else ""
    what = f"{how}{search_record.set_name(record['chosen'], names)} and the head"
  chosen = sets.get(tuple(record["chosen"]))
  lines = [f"{verb} {what}{_accuracy(record, chosen) if chosen else ''}."]
  by = f"Chosen by {record['chosen_by']}."
  if chosen is not None:
    total, params = record["backbone"]["num_params"], chosen["trained_params"]
    by = f"{words.parameters(params)} of {words.parameters(total)} parameters are trained. {by}"
  lines.append(by)
  if record["certificate"] is None:
    return [*lines, "No certificate: whether another set is better was not asked."]
  return [*lines, *certificate(record["certificate"], sets, names, record["chosen"])]


def _accuracy(record: Row, chosen: Row) -> str:
  sets, names = search_record.by_units(record), search_record.unit_names(record)
  value = fields.estimate(chosen)
  text = f": {words.percent(value.mean)} %"
  if value.known:
    text += f" (95 % interval {words.percent(value.low)} to {words.percent(value.high)})"
  text += " on held-out images"
  against = []
  for units, title in zip(((), names), _REFERENCES, strict=True):
    if units in sets and sets[units] is not chosen:
      difference = search_record.difference(chosen, sets[units])
      against.append(f"{words.difference(difference)} points against {title}")
  return f"{text}, {' and '.join(against)}" if against else text


def certificate(
  found: Row, sets: Mapping[tuple[str, ...], Row], names: Sequence[str], chosen: Sequence[str]
) -> list[str]:
  """How sure the choice is, and which set costs least of those that may be better, in sentences.

  Args:
    found: the certificate of the record.
    sets: what was tried.
    names: all units.
    chosen: the set of the record; the certified one is named where it is another.
  """
  own = list(found["chosen"]) == list(chosen)
  subject = "This choice" if own else search_record.set_name(found["chosen"], names)
  level = f"{100 * found['level']:g} %"
  others = search_record.in_doubt(found)
  if not others:
    return [f"Decided at {level}: no other set that was tried is left in doubt."]
  lines = [
    f"{subject} is expected to be {100 * found['expected_regret']:.2f} points below the best of "
    f"the sets tried; it is the best with a probability of "
    f"{search_record.chance_text(found['probability_best'])}."
  ]
  known = [sets[tuple(other["units"])] for other in others if tuple(other["units"]) in sets]
  smallest = min(known, key=lambda tried: tried["trained_params"], default=None)
  text = f"{words.count(len(others), 'other set')} cannot be told apart from the best at {level}"
  if smallest is not None:
    name = search_record.set_name(smallest["units"], names)
    text += f"; of them {name} trains the least ({words.parameters(smallest['trained_params'])})"
  lines.append(f"{text}.")
  if len(others) == len(found["undecided"]):
    lines.append(f"The chosen set is not among those that hold the best at {level}.")
  return lines


def in_doubt(others: Sequence[Row], names: Sequence[str], most: int) -> str:
  """Sets that may be the best, with the probability of that in brackets; the first `most`."""
  listed = [
    f"{search_record.set_name(other['units'], names)} "
    f"({search_record.chance_text(other['probability'])})"
    for other in others[:most]
  ]
  more = f" and {len(others) - most} more" if len(others) > most else ""
  return f"{'; '.join(listed)}{more}"


def path(record: Row, found: Row) -> str:
  """A greedy search in a line: its start, its steps with their accuracies, why it ended."""
  names = search_record.unit_names(record)
  direction = "forward" if found["start"] == search_record.FORWARD else "backward"
  first = found["steps"][0]["base"] if found["steps"] else found["chosen"]
  start = search_record.by_units(record).get(tuple(first))
  parts = [search_record.set_name(first, names)]
  parts[0] += f" {words.percent(start['mean'])}" if start else ""
  for step in found["steps"]:
    text = _JOINED.join([*moves(step, _JOINED), words.percent(step["score"])])
    parts.append(text if step["taken"] else f"(not taken: {text})")
  steps = f"{direction}, {_rule(found)}; held-out accuracy in %: {', '.join(parts)}"
  return f"{steps}. Ended: {found['stopped']}"


def moves(step: Row, gap: str = " ") -> list[str]:
  """What came and went in a step: "+ block9"; of ranks "block9 4 → 16"."""
  came = [name for name in step["chosen"] if name not in step["base"]]
  went = [name for name in step["base"] if name not in step["chosen"]]
  before = dict(map(search_record.unit_and_rank, went))
  parts = []
  for name in came:
    unit, rank = search_record.unit_and_rank(name)
    old = before.get(unit)
    if old:
      went.remove(f"{unit}={old}")
      parts.append(f"{unit}{gap}{old}{gap}\N{RIGHTWARDS ARROW}{gap}{rank}")
    else:
      parts.append(f"+{gap}{name}")
  return [*parts, *(f"{words.MINUS}{gap}{name}" for name in went)]


def _rule(found: Row) -> str:
  """The rule of a greedy search with the numbers that it uses, its budget, and racing."""
  rule = found["rule"]
  used = {"gain": ("epsilon",), "tolerant": ("epsilon",), "size": ("size",)}
  used = used.get(rule["kind"], ("alpha", "overlap"))
  numbers = [f"{key} {rule[key]:g}" for key in used if rule.get(key) is not None]
  text = f"rule {rule['kind']}" + (f" ({', '.join(numbers)})" if numbers else "")
  limits = [f"{k} {v:,g}" for k, v in (found["budget"] or {}).items() if v is not None]
  text += f", at most {', '.join(limits)}" if limits else ""
  return text + (", raced" if found["racing"] else "")


def cost(record: Row) -> list[str]:
  """What the search cost, in sentences."""
  spent = record["cost"]
  lines = [
    f"{spent['trainings']:,} trainings ({spent['dropped_by_race']:,} spared by a race) in "
    f"{spent['seconds']:,.0f} seconds, and {spent['compile_seconds']:,.0f} seconds of compiling."
  ]
  ratio = search_record.flop_ratio(record)
  scale, unit = search_record.flop_unit(record)
  if ratio:
    lines.append(
      f"{spent['flops'] / scale:,.3g} {unit} in all. A plain search, whose "
      f"{spent['plain_trainings']:,} trainings run the whole network each, takes "
      f"{spent['plain_flops'] / scale:,.3g} {unit}, {ratio:.2g} times as much."
    )
  return [*lines, *map(str, spent["notes"])]


def notes(record: Row) -> list[str]:
  """What the table of sets means, and what it does not say."""
  more = _DIFFERENCES if record["data"]["num_folds"] > 1 else _ONE_SPLIT
  lines = [_OPTIMISM.format(count=f"{len(record['sets']):,} sets"), f"{_INTERVALS} {more}"]
  lines.append(_COLUMNS)
  names = search_record.unit_names(record)
  diverged = [t for t in record["sets"] if t.get("diverged")]
  if diverged:
    listed = "; ".join(search_record.set_name(t["units"], names) for t in diverged)
    lines.append(f"{len(diverged):,} sets diverged and cannot be chosen: {listed}.")
  for tried in record["sets"]:
    if tried.get("exploded"):
      name = search_record.set_name(tried["units"], names)
      lines.append(f"{name} exploded: {'; '.join(tried['exploded'])}.")
  dropped = sum(not (tried["complete"] or tried.get("diverged")) for tried in record["sets"])
  if dropped:
    sets = f"{words.count(dropped, 'set')} {'was' if dropped == 1 else 'were'}"
    lines.append(f"{sets} dropped by a race before their last fold: not ranked.")
  return lines
