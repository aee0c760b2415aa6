"""Exports a trained network to a program or to weights that run without this library.

  python -m subtune_jax.export runs/quickstart/best --format=onnx --out=network.onnx
  python -m subtune_jax.export runs/quickstart/best --format=safetensors --out=for_timm
  python -m subtune_jax.export emoji=runs/emoji/best runs/serif/best --format=onnx --out=both.onnx

The first arguments are model folders, which every run leaves as WORKDIR/best; several are tasks of
one backbone (docs/multitask.md) and become one program. What is written is run
or read back before. Exit code 0, or 2 and one line where the input is wrong or the format cannot
hold the network.
"""

import argparse
from collections.abc import Callable, Sequence
import pathlib
from typing import Any

from subtune_jax import console, multitask
from subtune_jax.deploy import folder
from subtune_jax.deploy.exporting import onnx_file, program, saved_model, stablehlo, torch_weights
from subtune_jax.multitask import exporting

# Format -> its writer, and the options that are for it.
FORMATS: dict[str, tuple[Callable[..., pathlib.Path], tuple[str, ...]]] = {
  "onnx": (onnx_file.write, ("input",)),
  "stablehlo": (stablehlo.write, ("input", "platforms")),
  "saved_model": (saved_model.write, ("input",)),
  "safetensors": (torch_weights.write, ("layout",)),
}
_OF_MANY = {"onnx": exporting.write_onnx, "stablehlo": exporting.write_stablehlo}
_KEYWORDS = {"input": "dtype"}


def _parser() -> argparse.ArgumentParser:
  parser = console.Parser("python -m subtune_jax.export", __doc__)
  parser.add_argument("folders", nargs="+", metavar="folder", help="a model folder, such as "
                      "runs/quickstart/best; of several tasks FOLDER or NAME=FOLDER")  # fmt: skip
  parser.add_argument("--format", choices=FORMATS, required=True, help="what is written")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="a file NAME.onnx, or for "
                      "the other formats a new folder")  # fmt: skip
  parser.add_argument("--input", choices=program.DTYPES, help="type of the images, which are in "
                      "0..255 in both (uint8)")  # fmt: skip
  platforms = f"some of {','.join(stablehlo.PLATFORMS)} ({','.join(stablehlo.DEFAULT)})"
  parser.add_argument("--platforms", type=_names, help=f"of StableHLO: {platforms}")
  parser.add_argument("--layout", choices=torch_weights.LAYOUTS, help="whose names the weights in "
                      "safetensors have (timm)")  # fmt: skip
  return parser


def main(argv: Sequence[str] | None = None) -> None:
  """Writes the export."""
  given = _parser().parse_args(argv)
  with console.reported():
    write, options = FORMATS[given.format]
    chosen = _chosen(given, options)
    if len(given.folders) == 1:
      path = write(folder.load(given.folders[0]), given.out, **chosen)
    else:
      path = _write_many(given, chosen)
    print(f"{path}: {given.format}, {_size(path) / 1e6:.1f} MB")


def _write_many(given: argparse.Namespace, chosen: dict[str, Any]) -> pathlib.Path:
  if given.format not in _OF_MANY:
    raise ValueError(
      f"--format={given.format} holds one network, and {len(given.folders)} folders are given; "
      f"several go into {' or '.join(_OF_MANY)}"
    )
  network = multitask.MultiTask(multitask.named(given.folders))
  return _OF_MANY[given.format](network, given.out, **chosen)


def _chosen(given: argparse.Namespace, options: Sequence[str]) -> dict[str, Any]:
  """The options that were given, as the writer's arguments."""
  every = {name for _, names in FORMATS.values() for name in names}
  for name in sorted(every - set(options)):
    if getattr(given, name) is not None:
      takers = [form for form, (_, names) in FORMATS.items() if name in names]
      raise ValueError(f"--{name} is for --format={' and '.join(takers)}, not {given.format}")
  chosen = {name: getattr(given, name) for name in options}
  return {_KEYWORDS.get(k, k): value for k, value in chosen.items() if value is not None}


def _names(text: str) -> list[str]:
  return [name for name in text.split(",") if name]


def _size(path: pathlib.Path) -> int:
  files = path.rglob("*") if path.is_dir() else [path]
  return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
  main()
