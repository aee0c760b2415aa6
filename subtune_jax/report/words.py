"""Numbers and lists as a reader sees them, in tables, sentences and figures."""

from collections.abc import Callable, Sequence
import math

from subtune_jax.report import estimate

MINUS = "\N{MINUS SIGN}"


def percent(value: float, digits: int = 1) -> str:
  """0.522 -> "52.2"; "n/a" for NaN."""
  return "n/a" if math.isnan(value) else f"{100 * value:.{digits}f}"


def parameters(count: int) -> str:
  """57645 -> "57.6 k", 3371025 -> "3.37 M"."""
  for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
    if count >= scale:
      value = count / scale
      return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
  return str(count)


def num_bytes(count: float) -> str:
  """5.3e6 -> "5.3 MB"."""
  for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if count >= scale:
      return f"{count / scale:.3g} {unit}"
  return f"{count:g} bytes"


def seconds(value: float) -> str:
  return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def known(value: float, text: Callable[[float], str]) -> str:
  """`text` of a number, "" of nan."""
  return "" if math.isnan(value) else text(value)


def duration(value: float) -> str:
  """40.2 -> "40 s", 754 -> "13 min", 9000 -> "2.5 h"."""
  if value < 99.5:
    return f"{value:.0f} s"
  return f"{value / 60:.0f} min" if value < 99.5 * 60 else f"{value / 3600:.1f} h"


def setting_value(value: float) -> str:
  """A learning rate or a strength, short: 0.0003 -> "3e-4", 0.03 -> "0.03"."""
  if value == 0 or 0.01 <= abs(value) < 1000:
    return f"{value:.3g}"
  mantissa, exponent = f"{value:.1e}".split("e")
  return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def setting(name: str, value: float) -> str:
  """ "lr 3e-4"."""
  short = {"learning_rate": "lr"}.get(name, name)
  return f"{short} {setting_value(value)}"


def accuracy(value: estimate.Estimate) -> str:
  """ "52.2 [48.3, 56.0]" in per cent; the mean alone where no interval is known."""
  if not value.known:
    return percent(value.mean)
  return f"{percent(value.mean)} [{percent(value.low)}, {percent(value.high)}]"


def plus_minus(value: estimate.Estimate) -> str:
  """ "52.2 ± 3.9": per cent, and half the width of the interval."""
  half = f" ±{100 * value.half_width:4.1f}" if value.known else ""
  return f"{percent(value.mean)}{half}"


def difference(value: estimate.Estimate) -> str:
  """ "+4.2 [+1.1, +7.3]" in points; without the ends where they are not known."""
  if math.isnan(value.mean):
    return "n/a"
  if not value.known:
    return f"{100 * value.mean:+.1f}"
  mean, low, high = (100 * v for v in (value.mean, value.low, value.high))
  return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def signed(value: float) -> str:
  """1.23 -> "+1.2", with a minus as wide as the plus."""
  return f"{value:+.1f}".replace("-", MINUS)


def count(number: int, noun: str) -> str:
  """ "1 seed", "3 seeds"."""
  return f"{number:,} {noun}{'' if number == 1 else 's'}"


def verb(number: int) -> str:
  """ "is" of one, "are" of any other number."""
  return "is" if number == 1 else "are"


def listed(names: Sequence[str]) -> str:
  """ "A", "A and B", "A, B and C"."""
  return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def shorten(text: str, length: int) -> str:
  """`text`, or its start and an ellipsis."""
  return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def file_name(text: str) -> str:
  """A name that every file system takes: "fog/5" -> "fog_5"."""
  return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in text)
