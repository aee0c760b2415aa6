"""Metrics of a run: `metrics.jsonl` always, TensorBoard events through clu when asked for."""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

from subtune_jax import files, processes, strict_json


class MetricWriter:
  """Writes scalars to WORKDIR/metrics.jsonl and, as clu does, to TensorBoard events.

  Of several processes of a run only the first writes.

  Args:
    workdir: the run's folder.
    tensorboard: write events too; needs clu and TensorFlow.

  Raises:
    ValueError: TensorBoard is asked for and clu or TensorFlow is missing.
  """

  def __init__(self, workdir: pathlib.Path, *, tensorboard: bool):
    first = processes.is_first()
    self._path = workdir / "metrics.jsonl" if first else pathlib.Path(os.devnull)
    self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
    self._events = _clu_writer(workdir) if tensorboard and first else None

  def write(self, step: int, training: str, scalars: Mapping[str, Any]) -> None:
    """Writes scalars of one training at one of its epochs; None and NaN are null; None is
    no event.

    A value may be a dict of scalars: of "rates" by block, "rates/block3" is an event.
    """
    line = strict_json.dumps({"training": training, "step": step, **scalars})
    with files.naming(self._path):
      self._file.write(f"{line}\n".encode())
    if self._events is not None:
      groups = {k: v if isinstance(v, Mapping) else {"": v} for k, v in scalars.items()}
      present = {
        f"{training}/{k}/{part}".rstrip("/"): v
        for k, group in groups.items()
        for part, v in group.items()
        if v is not None
      }
      self._events.write_scalars(step, present)

  def close(self) -> None:
    """Flushes and closes the files."""
    self._file.close()
    if self._events is not None:
      self._events.close()


def _clu_writer(workdir: pathlib.Path):
  try:
    from clu import metric_writers
  except ImportError as e:
    raise ValueError(
      f"TensorBoard events need clu and TensorFlow ({e}); pip install 'subtune-jax[tfds]', or set "
      "--config.tensorboard=False"
    ) from e
  return metric_writers.SummaryWriter(str(workdir / "tensorboard"))
