"""WORKDIR/epochs/KEY/STAGE-EPOCH.npz: what was seen of the training KEY after an epoch."""

from collections.abc import Callable, Mapping
import pathlib
from typing import Any

import numpy as np

from subtune_jax import files
from subtune_jax.training import loop

Row = Mapping[str, Any]
FOLDER = "epochs"


def path(workdir: pathlib.Path, key: str, epoch: Row) -> pathlib.Path:
  """The file of an epoch, a row of the history of the training `key`."""
  return workdir / FOLDER / key / f"{epoch['stage']}-{epoch['epoch']}.npz"


def read(file: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a file.

  Raises:
    FileNotFoundError, ValueError: it is missing or damaged.
  """
  return files.read_npz(file, "what was seen of a training")


def watch(
  workdir: pathlib.Path,
  look: Callable[[Any], Mapping[str, np.ndarray]],
  wanted: Callable[[Row], bool] = lambda epoch: True,
) -> Callable[[str], loop.OnVariables]:
  """Key of a training -> what `fit` calls after its epochs to write their files.

  Args:
    workdir: of the run.
    look: variables -> the arrays to write.
    wanted: whether an epoch gets a file.
  """

  def of(key: str) -> loop.OnVariables:
    def on_variables(epoch, variables):
      if wanted(epoch):
        files.write_npz(path(workdir, key, epoch), look(variables))

    return on_variables

  return of
