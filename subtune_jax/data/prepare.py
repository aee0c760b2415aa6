"""Downloads and prepares data sets with TensorFlow Datasets, when asked:

  python -m subtune_jax.data.prepare --list
  python -m subtune_jax.data.prepare vtab/cifar100 vtab/dtd

They go to $TFDS_DATA_DIR, or ~/tensorflow_datasets. `scripts/prepare_fashion_mnist.py` prepares
Fashion-MNIST from a Debian package, without TFDS's servers.
"""

import argparse
from collections.abc import Sequence
import sys

from absl import logging

from subtune_jax.data import choices, shifts, tfds_source, vtab


def sources() -> dict[str, tfds_source.Source]:
  """Returns what can be prepared, by our name."""
  return dict(sorted((vtab.SOURCES | shifts.SOURCES).items()))


def listing() -> str:
  """Returns a table: name, how much it downloads, by hand or not, whether it is prepared."""
  rows = [("name", "download", "by hand", "prepared", "needs")]
  for name, source in sources().items():
    rows.append(
      (
        name,
        source.download,
        "yes" if source.manual else "no",
        "yes" if source.is_prepared() else "no",
        " ".join(source.needs),
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
  return "\n".join(lines)


def prepare(name: str) -> None:
  """Downloads and prepares one data set; does nothing where it is prepared.

  Raises:
    ValueError: an unknown name.
    ModuleNotFoundError: TFDS needs a module for it that is not installed.
    errors.MissingDataError: files that have to be fetched by hand are not there.
  """
  choices.check("data set", name, sources())
  source = sources()[name]
  if source.is_prepared():
    logging.info("%s is prepared already, in %s", name, source.path)
    return
  lacking = source.missing_modules()
  if lacking:
    packages = " ".join({"cv2": "opencv-python-headless"}.get(m, m) for m in lacking)
    raise ModuleNotFoundError(f"Preparing {name!r} needs: pip install {packages}")
  folder = tfds_source.manual_dir()
  if source.manual and not (folder.is_dir() and any(folder.iterdir())):
    raise tfds_source.missing(source, name)
  tfds = tfds_source.import_tfds()
  logging.info("%s: downloads %s to %s", name, source.download, tfds_source.data_dir())
  builder = tfds.builder(
    f"{source.name}:{source.version}", data_dir=tfds_source.data_dir(), try_gcs=False
  )
  config = tfds.download.DownloadConfig(manual_dir=folder, try_download_gcs=False)
  builder.download_and_prepare(download_config=config)


def main(arguments: Sequence[str] | None = None) -> int:
  """Prepares what the command line names; returns 0, or 1 if one failed."""
  parser = argparse.ArgumentParser(
    prog="python -m subtune_jax.data.prepare", description=__doc__.splitlines()[0]
  )
  parser.add_argument("names", nargs="*", metavar="NAME", help="data sets; see --list")
  parser.add_argument("--list", action="store_true", help="list the names and sizes, and stop")
  options = parser.parse_args(arguments)
  if options.list:
    sys.stdout.write(listing() + "\n")
    return 0
  if not options.names:
    parser.error("name at least one data set, or pass --list")
  for name in options.names:
    try:
      choices.check("data set", name, sources())
    except ValueError as error:
      parser.error(str(error))
  logging.set_verbosity(logging.INFO)
  failed = False
  for name in options.names:
    try:
      prepare(name)
    except Exception as error:  # The other data sets go on.
      logging.error("%s: %s", name, error)
      failed = True
  return int(failed)


if __name__ == "__main__":
  sys.exit(main())
