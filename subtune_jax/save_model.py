"""Writes the model folder of a training of a finished run, other than WORKDIR/best.

  python -m subtune_jax.save_model runs/quickstart --method=lp_ft --out=lp_ft_model
  python -m subtune_jax.save_model runs/mine --method=lora --peft=timm --out=for_torch

With --peft it is the folder that torch's `peft` reads: the adapters and the head of that training.

Exit code 0, or 2 and one line where the input is wrong.
"""

import argparse
from collections.abc import Sequence
import pathlib

from subtune_jax import console, peft_files
from subtune_jax.runner import network
from subtune_jax.studies.compare import best
from subtune_jax.studies.compare import record as compare_record


def _parser() -> argparse.ArgumentParser:
  parser = console.Parser("python -m subtune_jax.save_model", __doc__)
  parser.add_argument("workdir", type=pathlib.Path, help="of a finished run")
  parser.add_argument("--method", help="its name; by default the one that validation chose")
  parser.add_argument("--seed", type=int, help="by default the one that validation chose")
  parser.add_argument("--peft", choices=peft_files.LAYOUTS, help="write an adapter of PEFT (lora, "
                      "dora) with the module names of that library")  # fmt: skip
  parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder to write")
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Writes the folder."""
  given = _parser().parse_args(argv)
  with console.reported():
    run = compare_record.load(given.workdir)
    row = best.choose(run.record, given.method, given.seed)
    config = _config(run.record["config"])
    engine, pretrained = network.load_network(config, len(run.record["data"]["class_names"]))
    if given.peft:
      path = best.write_peft(run, row, config, engine, pretrained, given.out, given.peft)
    else:
      path = best.write(run, row, config, engine, pretrained, given.out)
  print(f"{path}: {row['method']}, seed {row['seed']}")


def _config(fields: dict) -> object:
  """The config of a record, by attribute."""
  import ml_collections

  return ml_collections.ConfigDict(fields)


if __name__ == "__main__":
  main()
