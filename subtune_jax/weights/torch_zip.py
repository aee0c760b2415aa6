"""Reads torch's zip files without torch: `torch.save`'s, and TorchScript archives' weights.

A TorchScript archive (`torch.jit.save`) describes modules as objects of classes whose code lies in
the same file. The code is not read: the objects' attributes are the modules and tensors.
"""

from concurrent import futures
import io

import numpy as np

from subtune_jax.weights import errors, torch_state, torch_tensors, zip_archive

_PICKLE = "/data.pkl"


def root(archive: zip_archive.Archive) -> str | None:
  """Returns the folder in the archive that holds a torch file, or None if there is none."""
  roots = [n.removesuffix(_PICKLE) for n in archive.names if n.endswith(_PICKLE)]
  return next((r for r in roots if "/" not in r), None)


def read(archive: zip_archive.Archive, name: str, file_size: int) -> dict[str, np.ndarray]:
  """Returns the tensors as read-only views of the file.

  Args:
    archive: one that has a `root`.
    name: the file's name, for the log.
    file_size: its bytes.

  Raises:
    Refused: a name other than those of tensors and plain data, or no clear state dict.
    Damaged: a file that contradicts itself, or a tensor whose checksum is wrong.
  """
  top, names = root(archive), set(archive.names)
  order = f"{top}/byteorder"
  if order in names and bytes(archive.read(order)) != b"little":
    raise errors.Refused("it was not written on a little-endian machine")
  pickles = torch_tensors.Pickles(script=f"{top}/constants.pkl" in names)
  stream = io.BytesIO(archive.read(f"{top}{_PICKLE}"))
  value = pickles.load(stream)
  if stream.read(1):
    raise errors.Damaged("bytes follow its pickle")
  tensors = torch_state.tensors(value, name, file_size)
  needed = {t.storage.key: t.storage for t in tensors.values()}
  with futures.ThreadPoolExecutor() as pool:  # checksums need no interpreter
    contents = list(pool.map(lambda key: archive.read(f"{top}/data/{key}"), needed))
  for storage, content in zip(needed.values(), contents, strict=True):
    if len(content) != storage.nbytes:
      raise errors.Damaged(
        f"storage {errors.quote(storage.key)} holds {len(content)} bytes, {storage.nbytes} are "
        "declared"
      )
  return torch_tensors.arrays(tensors, dict(zip(needed, contents, strict=True)))
