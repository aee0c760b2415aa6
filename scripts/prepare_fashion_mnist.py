"""Prepares Fashion-MNIST for TensorFlow Datasets from Debian's package, without the network.

  apt-get install dataset-fashion-mnist        # or: apt-get download, then dpkg-deb -x FILE DIR
  python scripts/prepare_fashion_mnist.py [--source DIR/usr/share/datasets/fashion-mnist]

Debian's files hold the same compressed data as the original ones under another gzip header: the
name and time were taken out when the package was built. Both are known, so the original files are
made again, byte for byte, and put where TFDS looks for files fetched by hand. There the builder
computes their SHA-256 and refuses others (it does not for files in its download folder).
"""

import argparse
import pathlib
import struct
import sys
import tempfile

from subtune_jax.data import tfds_source, vtab

DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
# Time in the gzip header of the original files, in seconds since 1970.
_PACKAGE = "dataset-fashion-mnist"
TIMES = {
  "train-images-idx3-ubyte": 1504176606,
  "train-labels-idx1-ubyte": 1504176606,
  "t10k-images-idx3-ubyte": 1504176627,
  "t10k-labels-idx1-ubyte": 1504176627,
}
_MAGIC, _HAS_NAME = b"\x1f\x8b\x08", 8


def original(data: bytes, name: str) -> bytes:
  """Returns the original file, from it or from Debian's.

  Args:
    data: content of a .gz file.
    name: of the file inside.

  Raises:
    ValueError: not a gzip file, or one with other parts in its header.
  """
  if data[:3] == _MAGIC and data[3] == _HAS_NAME:
    return data
  if data[:4] != _MAGIC + b"\0":
    raise ValueError(f"{name}.gz is not a gzip file as Debian's; it begins with {data[:4]!r}.")
  head = _MAGIC + bytes([_HAS_NAME]) + struct.pack("<I", TIMES[name]) + data[8:10]
  return head + name.encode() + b"\0" + data[10:]


def prepare(source: pathlib.Path) -> pathlib.Path:
  """Prepares the builder from the four files in `source`; returns where it is.

  Raises:
    FileNotFoundError: a file is missing.
    tfds.download.download_manager.NonMatchingChecksumError: a file is not the original.
  """
  target = vtab.SOURCES["fashion_mnist"]
  if target.is_prepared():
    return target.path
  tfds = tfds_source.import_tfds()
  with tempfile.TemporaryDirectory() as folder:
    for name in TIMES:
      path = source / f"{name}.gz"
      if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Install it: apt-get install {_PACKAGE}")
      (pathlib.Path(folder) / path.name).write_bytes(original(path.read_bytes(), name))
    builder = tfds.builder(
      f"{target.name}:{target.version}", data_dir=tfds_source.data_dir(), try_gcs=False
    )
    config = tfds.download.DownloadConfig(
      manual_dir=folder, extract_dir=pathlib.Path(folder, "extracted"), try_download_gcs=False
    )
    builder.download_and_prepare(download_config=config)
  return target.path


def main() -> int:
  """Parses the command line and prepares."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--source", type=pathlib.Path, default=DEBIAN, help="folder of the files")
  print(prepare(parser.parse_args().source))
  return 0


if __name__ == "__main__":
  sys.exit(main())
