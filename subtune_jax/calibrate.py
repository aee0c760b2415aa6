"""Calibrates stored logits: `python -m subtune_jax.calibrate --logits=train.npz --test=test.npz`.

The files hold `logits` [examples, classes] and `labels` [examples], and perhaps `absent` (a boolean
mask over classes), `class_names` and `groups` [examples] (rows of one group are not independent, as
views of one object are not: the intervals draw them together). Exit code 0, or 2 and one line where
the input is wrong.
"""

import argparse
from collections.abc import Sequence
import math
import pathlib

from subtune_jax import console, strict_json
from subtune_jax.calibration import report as report_lib


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = console.Parser("python -m subtune_jax.calibrate", __doc__)
  parser.add_argument("--test", required=True, help="npz of the test data")
  parser.add_argument("--logits", help="npz of the fine-tuning training data, for alg")
  parser.add_argument("--gamma", default="alg", help="alg (the default), or a number")
  parser.add_argument("--absent", help="names or indices, with commas; by default the mask of the "
                      "files, else the classes without a training label")  # fmt: skip
  parser.add_argument("--resamples", type=int, default=2000, help="of the test data, for the 95 %% "
                      "intervals (2000); 0 for none")  # fmt: skip
  parser.add_argument("--out", type=pathlib.Path, help="folder for curve.png and results.json")
  arguments = parser.parse_args(argv)
  arguments.error = parser.error
  return arguments


def _gamma(text: str) -> float | None:
  if text == "alg":
    return None
  try:
    gamma = float(text)
  except ValueError:
    gamma = math.nan
  if not math.isfinite(gamma):
    raise ValueError(f"--gamma is {text!r}: it must be alg or a finite number")
  return gamma


def _write(report: report_lib.Report, folder: pathlib.Path) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "results.json").write_text(strict_json.dumps(report.record(), indent=1) + "\n")
  report_lib.draw(report).savefig(folder / "curve.png", dpi=160, metadata={"Software": None})


def main(argv: Sequence[str] | None = None) -> None:
  """Prints gamma and the table, and writes the files that were asked for."""
  arguments = _parse(argv)
  try:
    gamma = _gamma(arguments.gamma)
    if gamma is None and arguments.logits is None:
      raise ValueError("--gamma=alg needs --logits=FILE, or give --gamma=NUMBER")
    train = report_lib.load(arguments.logits) if arguments.logits else None
    absent = None if arguments.absent is None else [w.strip() for w in arguments.absent.split(",")]
    test = report_lib.load(arguments.test)
    report = report_lib.summarize(train, test, gamma, absent, arguments.resamples)
    if arguments.out is not None:
      _write(report, arguments.out)
  except (ValueError, OSError, ImportError) as e:
    arguments.error(str(e))
  print(f"gamma {report.gamma:.6g} ({report.source})")
  print(report_lib.format_table(report))


if __name__ == "__main__":
  main()
