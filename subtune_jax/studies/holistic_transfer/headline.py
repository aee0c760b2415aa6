"""What a study of holistic transfer found, in sentences."""

from subtune_jax.report import words
from subtune_jax.studies.holistic_transfer import record as record_lib

Study = record_lib.Study
_JOINED = "\N{NO-BREAK SPACE}%"


def _mean(study: Study, title: str, kind: str, pair: str) -> float | None:
  """Micro accuracy in per cent of a row of the table."""
  numbers = study.numbers(title, kind)
  value = None if numbers is None else numbers["accuracy"]["micro"][pair]["mean"]
  return None if value is None else 100 * value


def headline(study: Study) -> list[str]:
  """What fine-tuning did to absent classes, what calibration gives back, what the features say."""
  source, ft = study.compared
  before, after = (_mean(study, t, "none", "U/Y") for t in (source, ft))
  did = "lost" if after < before else "gained"
  lines = [
    f"Accuracy on absent classes (Acc U/Y): {before:.1f} % of the source model, {after:.1f} % "
    f"after fine-tuning, which {did} {abs(after - before):.1f} points"
    f"{_interval(study, ft, 'none', 'U/Y', after < before)}; on seen classes (Acc S/Y) "
    f"{_mean(study, source, 'none', 'S/Y'):.1f} % and {_mean(study, ft, 'none', 'S/Y'):.1f} %."
  ]
  lines += [_given_back(study, kind, before) for kind in ("alg", "pcv") if study.numbers(ft, kind)]
  best = _mean(study, ft, "star", "Y/Y")
  if best is not None:
    lines[-1] += f" The best gamma on the test labels (an oracle) would reach {best:.1f} % there."
  return [line.replace(" %", _JOINED) for line in (*lines, *_features_said(study))]


def _interval(study: Study, title: str, kind: str, pair: str, lost: bool = False) -> str:
  """ " (95 % interval 1.2 to 3.4)" of the difference from the source model; "" without one."""
  value = study.against(study.row(title, kind), record_lib.PRETRAINED, pair)
  if value is None:
    return ""
  ends = (-value.high, -value.low) if lost else (value.low, value.high)
  low, high = (f"{100 * end:.1f}".replace("-", words.MINUS) for end in ends)
  return f" (95 % interval {low} to {high})"


def _given_back(study: Study, kind: str, before: float) -> str:
  """What a calibration of fine-tuning changes, in a sentence."""
  ft = study.title(record_lib.FT)
  absent, seen, every = (
    tuple(_mean(study, ft, k, pair) for k in ("none", kind)) for pair in ("U/Y", "S/Y", "Y/Y")
  )
  back = absent[1] - absent[0]
  text = f"{kind.upper()} gives back {back:.1f} points of Acc U/Y, to {absent[1]:.1f} %"
  if back <= 0:
    text = f"{kind.upper()} gives nothing back: Acc U/Y goes to {absent[1]:.1f} %"
  where = "above" if absent[1] > before else "below"
  text += f" ({abs(absent[1] - before):.1f} points {where} the source model)"
  moved = seen[1] - seen[0]
  change = f"changes Acc S/Y by {words.signed(moved)} points to" if abs(moved) >= 0.05 else ""
  text += f", and {change or 'leaves Acc S/Y at'} {seen[1]:.1f} %"
  text += f"; over all classes (Acc Y/Y) {every[0]:.1f} % becomes {every[1]:.1f} %"
  against = study.against(study.row(ft, kind), record_lib.FT, "Y/Y")
  if against is not None:
    low, high = words.signed(100 * against.low), words.signed(100 * against.high)
    text += f", a difference of {low} to {high} points (95 % interval)"
  return f"{text}."


def _features_said(study: Study) -> list[str]:
  """Whether the features of absent classes became better or worse, in a sentence."""
  found = [study.numbers(title) for title in study.compared]
  if any("ncm" not in numbers for numbers in found):
    return []
  ncm = [100 * numbers["ncm"]["cosine"]["micro"]["U/Y"]["mean"] for numbers in found]
  own = [100 * numbers["accuracy"]["micro"]["U/U"]["mean"] for numbers in found]
  way = "better" if ncm[1] > ncm[0] else "no better"
  return [
    f"The features tell absent classes apart {way} than before: by nearest class means, Acc U/Y is "
    f"{ncm[0]:.1f} % of the source model and {ncm[1]:.1f} % after fine-tuning. Among absent "
    f"classes alone (Acc U/U) the classifier has {own[0]:.1f} % and {own[1]:.1f} %."
  ]
