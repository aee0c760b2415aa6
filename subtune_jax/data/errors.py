"""Errors that name what is missing or broken, and what to do."""

from collections.abc import Mapping
import os

_MOST_NAMED = 10


class MissingDataError(FileNotFoundError):
  """The files of a data set are not on this machine."""


class BrokenImageError(ValueError):
  """A file that is not an image that can be read."""


def missing(
  name: str, where: str | os.PathLike, fix: str, *, download: str = ""
) -> MissingDataError:
  """Returns the error for a data set that is not here.

  Args:
    name: of the data set.
    where: the path at which its files are looked for.
    fix: what gets them: a command, or what to fetch by hand and where to put it.
    download: how much comes over the network, such as "163 MB".
  """
  size = f" ({download} to download)" if download else ""
  return MissingDataError(f"The data set {name!r}{size} is not in {os.fspath(where)}. {fix}")


def broken_images(where: str, broken: Mapping[str, str], fix: str) -> BrokenImageError:
  """Returns the error for images that cannot be read: the count, the first ten, and the fix.

  Args:
    where: what holds them.
    broken: the reason for each, by name.
    fix: what to do.
  """
  named = [f"{name} ({why})" for name, why in list(broken.items())[:_MOST_NAMED]]
  more = len(broken) - len(named)
  rest = f"; and {more} more" if more else ""
  count = f"{len(broken)} image{'' if len(broken) == 1 else 's'}"
  return BrokenImageError(f"{where}: {count} cannot be read: {'; '.join(named)}{rest}. {fix}")
