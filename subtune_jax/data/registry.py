"""The data sets by name.

A data set is an `Entry`: a loader `(split, image_size, *, interpolation) -> Dataset`, its splits,
and whose images it holds. A loader that reads its files through a heavy library imports that
library inside the function. `folder:/path/to/images` is a data set too, without an entry: see
`subtune_jax.data.folder`. `NAME+corruption/severity` is a corrupted copy of any of them: see
`subtune_jax.data.corrupted`.
"""

from collections.abc import Callable
import dataclasses
import functools
import os

from subtune_jax.data import (
  choices,
  corrupted,
  dataset,
  emoji_domains,
  folder,
  glyph_domains,
  shifts,
  tfds_source,
  vtab,
)

SPLITS = ("train", "validation", "trainval", "test")

Loader = Callable[..., dataset.Dataset]


@dataclasses.dataclass(frozen=True)
class Entry:
  """A data set of the registry.

  Attributes:
    load: `(split, image_size, *, interpolation) -> Dataset`.
    splits: the names that `load` takes, of `SPLITS`.
    describe: whose images it holds and under which licence; "" where nobody asks for it.
  """

  load: Loader
  splits: tuple[str, ...] = SPLITS
  describe: str = ""

  def __post_init__(self):
    for split in self.splits:
      choices.check("split", split, SPLITS)


_REGISTERED: dict[str, Entry] = {}


@functools.cache
def _shipped() -> dict[str, Entry]:
  """The data sets that come with the package, or that it knows how to read."""
  packed = {
    f"{own.name}/{domain}": Entry(functools.partial(own.load, domain), describe=text)
    for own in (emoji_domains.SET, glyph_domains.SET)
    for domain, text in own.attribution.items()
  }
  tasks = {name: Entry(loader, vtab.SPLITS) for name, loader in vtab.ENTRIES.items()}
  shifted = {
    name: Entry(loader, shifts.SPLITS.get(name, SPLITS)) for name, loader in shifts.ENTRIES.items()
  }
  return packed | tasks | shifted


def _entries() -> dict[str, Entry]:
  return _shipped() | _REGISTERED


def attribution(name: str) -> str:
  """Returns whose images a data set holds and under which licence; "" where nobody asks for it."""
  entry = _entries().get(base_name(name))
  return entry.describe if entry else ""


def _corrupted(name: object) -> corrupted.Corrupted | None:
  """The parts of a corrupted name; a name that is registered as it is stands for itself."""
  return None if name in _entries() else corrupted.parse(name)


def base_name(name: str) -> str:
  """Returns the data set whose images a corrupted name corrupts; any other name as it is."""
  parts = _corrupted(name)
  return base_name(parts.base) if parts else name


def canonical(name: str) -> str:
  """Returns the name that a data set bears when loaded: of a folder, with its whole path."""
  parts = _corrupted(name)
  if parts:
    return f"{canonical(parts.base)}+{parts.corruption}/{parts.severity}"
  return folder.canonical(name) if folder.is_name(name) else name


def names() -> tuple[str, ...]:
  """Returns the names that `load` takes, sorted, but for folders and corrupted copies."""
  return tuple(sorted(_entries()))


def splits_of(name: str) -> tuple[str, ...]:
  """Returns the splits of a data set; of a folder, those that any folder can have.

  Raises:
    ValueError: an unknown name.
  """
  name = base_name(name)
  if folder.is_name(name):
    return SPLITS
  if name not in _entries():
    if _is_path(name):
      raise ValueError(f"Unknown data set {name!r}. Did you mean the folder 'folder:{name}'?")
    shown = dict.fromkeys(shifts.PATTERNS.get(n.split("/")[0], n) for n in names())
    choices.check("data set", name, (*shown, folder.EXAMPLE, corrupted.EXAMPLE))
  return _entries()[name].splits


def tested_split(name: str) -> str:
  """Returns what a data set is tested on that nothing else is done with.

  Its split "test"; of a folder that gives no splits, "whole": all images.

  Args:
    name: as for `load`; it is there.
  """
  path = _folder_of(base_name(name))
  return "test" if path is None or folder.gives_splits(path) else folder.WHOLE


def nested(one: str, other: str) -> bool:
  """Returns whether one of two data sets is read from a folder inside the other's."""
  folders = [path for name in (one, other) if (path := _folder_of(base_name(name))) is not None]
  if len(folders) < 2:
    return False
  outer, inner = sorted((folder.root_of(path) for path in folders), key=lambda p: len(p.parts))
  return outer != inner and inner.is_relative_to(outer)


def _is_path(name: object) -> bool:
  return isinstance(name, str) and (name.startswith(("/", "./", "../", "~")) or os.path.isdir(name))


def _folder_of(name: str) -> str | None:
  """The folder that a data set is read from, None for any other source."""
  if name in shifts.folders.FOLDERS:
    return str(shifts.folders.root() / shifts.folders.FOLDERS[name].path)
  return name if folder.is_name(name) else None


def require(name: str) -> None:
  """Checks that a data set's files are there, as far as can be told without reading images.

  Args:
    name: as for `load`.

  Raises:
    FileNotFoundError: they are missing; the message says how to get them.
    ValueError: an unknown name.
  """
  splits_of(name)
  name = base_name(name)
  if name in _REGISTERED:
    return
  source = (vtab.SOURCES | shifts.SOURCES).get(name)
  if source and not source.is_prepared():
    raise tfds_source.missing(source, name)
  there = True
  if folder.is_name(name):
    there = corrupted.is_folder(name)
  elif name in shifts.folders.FOLDERS:
    there = (shifts.folders.root() / shifts.folders.FOLDERS[name].path).is_dir()
  if not there or name in shifts.folders.BREEDS:  # BREEDS lists files and reads none
    load(name, "test", 32)


def register(
  name: str, loader: Loader, *, splits: tuple[str, ...] = SPLITS, describe: str = ""
) -> None:
  """Adds a data set.

  Args:
    name: the name that `load` will take.
    loader: `(split, image_size, *, interpolation) -> Dataset`, called when the data is asked for.
    splits: the names that the loader takes, of `SPLITS`.
    describe: whose images it holds and under which licence, where they ask to be named.

  Raises:
    ValueError: the name is taken or is that of a folder, or an unknown split.
  """
  if name in _entries() or folder.is_name(name):
    raise ValueError(f"The data set {name!r} exists already; choose another name.")
  _REGISTERED[name] = Entry(loader, tuple(splits), describe)


def load(
  name: str, split: str, image_size: int, *, interpolation: str = "bicubic"
) -> dataset.Dataset:
  """Loads one split of a data set.

  Args:
    name: one of `names()`, such as "emoji_domains/noto", or "folder:" and the path of a folder of
      images (`subtune_jax.data.folder` says what may lie in it); with "+fog/3" behind it, its
      images with fog of severity 3 (`subtune_jax.data.corrupted`).
    split: "train", "validation", "trainval" (both, train first) or "test"; of a folder also
      "whole", all images.
    image_size: height and width of the images, in pixels.
    interpolation: how images of another size are resized, "bicubic" or "bilinear", antialiased;
      VTAB's tasks also take "bilinear_no_antialias", the official way.

  Returns:
    A `Dataset` with images [n, image_size, image_size, 3], always in the same order.

  Raises:
    FileNotFoundError: the data set's files are missing; the message says how to get them.
    ValueError: an unknown name (the error has the nearest ones), split or interpolation, an image
      size that is not a positive integer, or damaged files.
  """
  allowed = splits_of(name)
  whole = () if _folder_of(base_name(name)) is None else (folder.WHOLE,)
  choices.check("split", split, (*allowed, *whole))
  parts = _corrupted(name)
  if parts:
    clean = load(parts.base, split, image_size, interpolation=interpolation)
    return corrupted.apply(clean, parts.corruption, parts.severity)
  if folder.is_name(name):
    return folder.load(name, split, image_size, interpolation=interpolation)
  return _entries()[name].load(split, image_size, interpolation=interpolation)
