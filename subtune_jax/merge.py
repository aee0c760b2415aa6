"""Merges an adapter of PEFT into the weights that it was trained on: a model folder.

  python -m subtune_jax.merge an_adapter --backbone=vit_s16 --weights=base.safetensors \\
    --classes=classes.txt --out=merged
  python -m subtune_jax.predict merged photos --out=predictions.csv

The adapter is a folder with adapter_config.json and adapter_model.safetensors, as torch's peft or
`python -m subtune_jax.save_model --peft=LAYOUT` writes it. Exit code 0, or 2 and one line where
something is missing or does not fit.
"""

import argparse
from collections.abc import Sequence
import pathlib

from subtune_jax import console
from subtune_jax.data import decode, preprocess
from subtune_jax.deploy import description, folder, peft_folder
from subtune_jax.models import compile_cache
from subtune_jax.runner import network


def _parser() -> argparse.ArgumentParser:
  parser = console.Parser("python -m subtune_jax.merge", __doc__)
  parser.add_argument("adapter", type=pathlib.Path, help="a folder of PEFT")
  parser.add_argument(
    "--backbone", required=True, help="its name in `python -m subtune_jax.models`"
  )
  parser.add_argument("--weights", required=True, help="those that the adapter was trained on: a "
                      "file, or a known name such as vit_s16/augreg-in21k")  # fmt: skip
  parser.add_argument("--options", default="", help="of the backbone, such as \"pool='mean'\"")
  parser.add_argument("--classes", type=pathlib.Path, help="a text file, the name of a class on "
                      "each line in the order of the head; by default the adapter's classes.txt or "
                      "id2label in its config.json")  # fmt: skip
  parser.add_argument("--image_size", type=int, help="in pixels; by default the backbone's")
  parser.add_argument("--preprocessing", choices=preprocess.PRESETS, help="by default what the "
                      "adapter's preprocessor_config.json or the weights say")  # fmt: skip
  parser.add_argument("--interpolation", choices=decode.INTERPOLATIONS, help="of the resize of "
                      "pictures; by default the preprocessing's")  # fmt: skip
  parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder to write")
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Writes the folder."""
  given = _parser().parse_args(argv)
  with console.reported():
    compile_cache.enable()
    own = description.Network(given.backbone, network.options(given.options))
    made = peft_folder.load(
      given.adapter, own, given.weights, image_size=given.image_size,
      class_names=peft_folder.read_names(given.classes) if given.classes else None,
      preprocessing=given.preprocessing, interpolation=given.interpolation,
    )  # fmt: skip
    path = folder.save(given.out, own, made)
  print(f"{path}: {given.backbone}, {len(made.class_names)} classes, {made.image_size} px")


if __name__ == "__main__":
  main()
