"""Everything that one accelerator is to be measured for, in at most eight minutes.

  python benchmarks/accelerator.py
  python benchmarks/accelerator.py --parts=train,search --seconds=300
  python benchmarks/accelerator.py --tiny      (every part on a CPU, with small networks)

Needs jax for the device, flax, optax, orbax, numpy and pillow, and no installation of this
package; torch with timm or torchvision is measured beside ours where it is there. Weights and
images are random. Parts, the most valuable first: parity with the CPU; train (ViT-B/16 and
ResNet-50 in bfloat16, against torch); subtuning; search; trace; others (further networks, float32).
Writes benchmarks/results/accelerator_DEVICE.md and .json after every row, so that a run that is cut
off leaves what it had. scripts/accelerator_wheels.sh carries missing packages to a bare machine.

No GPU was at hand when this was written; none of it has run on one. Every program is lowered for
CUDA in the tests, and all parts run there on a CPU.
"""

import argparse
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _parts(names: tuple[str, ...], given: str | None) -> list[str]:
  """The parts that are asked for, in the order of their worth."""
  wanted = list(names) if given is None else given.split(",")
  for name in wanted:
    if name not in names:
      raise ValueError(f"--parts has {name!r}; parts: {', '.join(names)}")
  return [name for name in names if name in wanted]


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--parts", help="names with commas between them; all by default")
  parser.add_argument("--seconds", type=float, default=480.0, help="for all parts together")
  parser.add_argument("--tiny", action="store_true", help="small networks; figures say nothing")
  parser.add_argument(
    "--out", type=pathlib.Path,
    help="folder of the results; benchmarks/results by default, none with --tiny",
  )  # fmt: skip
  return parser.parse_args()


def main() -> int:
  """Measures, prints and writes."""
  arguments = _arguments()
  sys.path.insert(0, str(ROOT))
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch shares the memory
  if arguments.tiny:
    from tests import xla_flags

    os.environ.setdefault("XLA_FLAGS", xla_flags.FASTEST)
  import jax

  from benchmarks import accelerator_parts
  from benchmarks.accelerator_parts import programs, runner

  try:
    parts = _parts(accelerator_parts.NAMES, arguments.parts)
    if not arguments.seconds > 0:
      raise ValueError(f"--seconds is {arguments.seconds}; give a positive number")
    if jax.default_backend() == "cpu" and not arguments.tiny:
      raise ValueError("jax sees no accelerator, only a CPU; --tiny runs the parts small on it")
  except ValueError as e:
    sys.stderr.write(f"error: {e}\n")
    return 2
  folder = arguments.out
  if folder is None and not arguments.tiny:
    folder = ROOT / "benchmarks" / "results"
  if folder is not None:
    folder.mkdir(parents=True, exist_ok=True)
  scale = programs.SMALL if arguments.tiny else programs.FULL
  command = " ".join(["python", "benchmarks/accelerator.py", *sys.argv[1:]])
  record = runner.run(parts, scale, arguments.seconds, folder, command)
  print("\n" + runner.document(record))
  failures = runner.failures(record)
  for failure in failures:
    sys.stderr.write(f"error: {failure}\n")
  return 1 if failures else 0


if __name__ == "__main__":
  sys.exit(main())
