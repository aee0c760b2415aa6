"""What a person sees while a run goes on: a bar with rate and time left, or plain lines."""

import io
import time
from typing import Any, TextIO

from subtune_jax.report import words
from subtune_jax.search import certificate

_PRIOR = 0.2  # of a forecast's seconds, that it counts for beside the pace so far


class Shown:
  """A bar on a terminal, and lines above it; lines alone anywhere else."""

  def __init__(self, total: int, stream: TextIO, unit: str):
    self.stream, self.bar = stream, None
    if stream.isatty():
      import tqdm

      self.bar = tqdm.tqdm(total=total, file=stream, unit=unit, dynamic_ncols=True)

  def line(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self.bar is not None:
      self.bar.write(text, file=self.stream)
    else:
      self.stream.write(text + "\n")
      self.stream.flush()

  def advance(self) -> None:
    """One more is done."""
    if self.bar is not None:
      self.bar.update(1)

  def close(self) -> None:
    """Ends the bar."""
    if self.bar is not None:
      self.bar.close()


class Prefixed(io.TextIOBase):
  """A stream for one of several runs at a time: every line says whose it is.

  Args:
    prefix: of each line.
    stream: where lines go.
  """

  def __init__(self, prefix: str, stream: TextIO):
    self._prefix, self._stream = prefix, stream

  def write(self, text: str) -> int:
    """Writes whole lines."""
    self._stream.write("".join(f"{self._prefix}{line}\n" for line in text.splitlines()))
    self._stream.flush()
    return len(text)


class Progress(Shown):
  """What is done of all trainings of a run, and the time that is left.

  Args:
    epochs: of the run; each counts the same until `expect` says what they take.
    stream: a terminal gets a bar, anything else a line per training.
  """

  def __init__(self, epochs: int, stream: TextIO):
    super().__init__(epochs, stream, "epoch")
    self._total, self._prior, self._measured = float(epochs), 0.0, False
    self._before = self._done = 0.0  # by earlier starts, now
    self._begin: float | None = None
    if self.bar is not None:
      self.bar.bar_format = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"

  def expect(self, seconds: float) -> None:
    """From here on what is done counts in seconds, and `seconds` are left of the whole run."""
    self._total, self._prior, self._measured = seconds, _PRIOR * seconds, True
    self._begin = time.monotonic()
    if self.bar is not None:
      self.bar.total = seconds

  def begin(self) -> None:
    """The first training begins; the pace counts from here."""
    if self._begin is None:
      self._begin = time.monotonic()

  def epoch(self, what: str, row: dict[str, Any], cost: float = 1.0) -> None:
    """One epoch is done, which was to take `cost`."""
    self.begin()
    self._done += cost
    if self.bar is not None:
      shown = [self.left(), f"epoch {row['epoch']}"]
      if row["validation_accuracy"] is not None:
        shown.append(f"val={row['validation_accuracy']:.3f}")
      self.bar.set_description(what, refresh=False)
      self.bar.set_postfix_str(", ".join(filter(None, shown)), refresh=False)
      self.bar.update(min(cost, max(self.bar.total - self.bar.n, 0.0)))

  def skip(self, epochs: int) -> None:
    """Epochs that an earlier start has done; `expect` was told of what is left."""
    if self._measured:
      return
    self._before += epochs
    if self.bar is not None:
      self.bar.update(epochs)

  def left(self) -> str:
    """ "about 3 min left" of the whole run, at the pace so far; "" before anything is done."""
    if self._begin is None or not self._done:
      return ""
    pace = (time.monotonic() - self._begin + self._prior) / (self._done + self._prior)
    return f"about {words.duration(max(self._total - self._before - self._done, 0.0) * pace)} left"

  def compare(self) -> None:
    """Says how long it took beside what was forecast."""
    if self._measured and self._done and self._begin is not None:
      took = time.monotonic() - self._begin
      self.stream.write(
        f"took {words.duration(took)}, forecast {words.duration(self._total)} "
        f"({took / self._total:.2f} times)\n"
      )


REFERENCES = "references"  # what a search shows of sets that are no candidates


class SearchProgress(Shown):
  """What a search shows: a bar over trainings, or a line per finished set of units.

  Args:
    num_cells: trainings of one set.
    stream: a terminal gets a bar.
  """

  def __init__(self, num_cells: int, stream: TextIO):
    super().__init__(0, stream, "training")
    self.num_cells, self.what = num_cells, ""
    self._cells: dict[tuple[str, ...], list[float]] = {}
    self._diverged: set[tuple[str, ...]] = set()
    self._left, self._begin, self._done = 0, time.monotonic(), 0
    self.best = ("", float("-inf"))

  def plan(self, new: int) -> None:
    """So many trainings are to be done now."""
    self._left, self._done, self._begin = new, 0, time.monotonic()
    if self.bar is not None:
      self.bar.total += new
      self.bar.refresh()

  def done(self, row: dict[str, Any], new: bool) -> None:
    """A training is finished, now or by an earlier start."""
    units = tuple(row["units"])
    cells = self._cells.setdefault(units, [])
    if row["accuracy"] is None:
      self._diverged.add(units)
    cells.append(row["accuracy"] or 0.0)
    name = certificate.label(units, "head alone")
    mean = sum(cells) / len(cells)
    whole = len(cells) == self.num_cells
    score = "diverged" if units in self._diverged else f"{mean:.3f}"
    healthy = units not in self._diverged
    if whole and healthy and self.what != REFERENCES and mean > self.best[1]:
      self.best = (name, mean)
    if not new:
      return
    self._done += 1
    left = self._time_left()
    if self.bar is not None:
      self.bar.set_description(f"{self.what} {name}, fold {row['fold'] + 1}", refresh=False)
      self.bar.set_postfix_str(f"best {self.best[0]} {self.best[1]:.3f}, {left}", refresh=False)
      self.bar.update(1)
    elif whole:
      best = f"best so far {self.best[0]} {self.best[1]:.3f}, " if self.best[0] else ""
      self.line(f"{self.what}: {name} {score} ({len(cells)} trainings), {best}{left}")

  def _time_left(self) -> str:
    rest = self._left - self._done
    seconds = (time.monotonic() - self._begin) / max(self._done, 1) * rest
    return f"{rest} trainings left of this step, about {seconds / 60:.1f} min"
