"""What the papers claim, and whether it holds here: docs/claims.md from the answers of runs.

  python benchmarks/claims.py                         (writes docs/claims.md and its figure)
  python benchmarks/claims.py --keep WORKDIR --as NAME     (keeps the answers of a finished run)

Every row is the difference of two accuracies on the same test images (or of what else the claim is
about), with its 95 % interval over groups of images and seeds. It holds if the interval lies above
0, does not hold if it lies below, else it is undecided. The rows are in
`benchmarks/claims_parts/rows.py`, the answers in `benchmarks/results/claims`, each with the command
that makes them again.
"""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main() -> None:
  """Keeps a run, or writes the table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--keep", type=pathlib.Path, metavar="WORKDIR", help="a finished run")
  parser.add_argument("--as", dest="name", help="the name to keep it under")
  arguments = parser.parse_args()
  if bool(arguments.keep) != bool(arguments.name):
    parser.error("give --keep WORKDIR and --as NAME together")
  sys.path.insert(0, str(ROOT))
  from benchmarks.claims_parts import archive, collect, render

  if arguments.keep:
    print(archive.write(arguments.name, collect.collect(arguments.keep)))
    return
  (ROOT / "docs" / "claims.md").write_text(render.document())
  (ROOT / "docs" / "images" / "claims.png").write_bytes(render.figure())
  (ROOT / "docs" / "images" / "regimes.png").write_bytes(render.regimes())
  print("docs/claims.md, docs/images/claims.png, docs/images/regimes.png")


if __name__ == "__main__":
  main()
