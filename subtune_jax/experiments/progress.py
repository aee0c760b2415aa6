"""What a person sees while a run goes on: a bar with rate and time left, or plain lines."""

from typing import Any, TextIO


class Progress:
  """Counts epochs over all trainings of a run.

  Args:
    total: epochs of the run.
    stream: a terminal gets a bar, anything else a line per training.
  """

  def __init__(self, total: int, stream: TextIO):
    self.stream, self.bar = stream, None
    if stream.isatty():
      import tqdm

      self.bar = tqdm.tqdm(total=total, file=stream, unit="epoch", dynamic_ncols=True)

  def line(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self.bar is not None:
      self.bar.write(text, file=self.stream)
    else:
      self.stream.write(text + "\n")
      self.stream.flush()

  def epoch(self, what: str, row: dict[str, Any]) -> None:
    """One epoch is done."""
    if self.bar is not None:
      self.bar.set_description(what, refresh=False)
      if row["validation_accuracy"] is not None:
        self.bar.set_postfix(val=f"{row['validation_accuracy']:.3f}", refresh=False)
      self.bar.update(1)

  def skip(self, epochs: int) -> None:
    """Epochs that an earlier start has done."""
    if self.bar is not None:
      self.bar.update(epochs)

  def close(self) -> None:
    """Ends the bar."""
    if self.bar is not None:
      self.bar.close()
