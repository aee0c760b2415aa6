"""Zip archives in memory: stored entries are views, deflated ones are bounded.

The central directory says what there is. An archive that contradicts itself (entries that overlap,
a name twice, a local header unlike the central one) is damaged; the CRC-32 of an entry is checked
when it is read.
"""

import mmap
import struct
import threading
from typing import NamedTuple
import zlib

from subtune_jax.weights import errors

SIGNATURE = b"PK\x03\x04"
_MAX_GROWTH = 8  # of all deflated entries together, in sizes of the file
_MIN_GROWTH = 2**20  # bytes

_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_MAX_COMMENT = 0xFFFF
_STORED, _DEFLATED = 0, 8
_UTF8, _ENCRYPTED = 1 << 11, 1 | 1 << 6 | 1 << 13
_FULL32 = 0xFFFFFFFF  # the value is in the zip64 field instead


class _Entry(NamedTuple):
  """What the central directory says of an entry."""

  name: bytes
  flags: int
  method: int
  crc: int
  compressed: int
  size: int
  header: int


class Archive:
  """The entries of an archive by name."""

  def __init__(self, data: mmap.mmap | bytes):
    """Reads the central directory.

    Args:
      data: the whole file, in memory or mapped.

    Raises:
      Damaged: an archive that contradicts itself or ends early.
      Refused: an entry that is encrypted, or compressed by another method than deflate.
    """
    self._data = memoryview(data)
    self._lock = threading.Lock()
    self._left = _MAX_GROWTH * len(data) + _MIN_GROWTH
    try:
      start, end, count = _directory(data)
      entries = _entries(data, start, end, count)
      self._entries = {_decode(e): (e, _payload(data, e)) for e in entries}
    except struct.error as e:
      raise errors.Damaged("its zip directory ends early") from e
    if len(self._entries) != count:
      raise errors.Damaged("its zip directory lists a name twice")
    _check_overlap(self._entries.values(), start)

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the entries, in the directory's order."""
    return tuple(self._entries)

  def read(self, name: str) -> bytes | memoryview:
    """Returns an entry: a view of the file if it is stored.

    Raises:
      Damaged: there is no such entry, its checksum or its length is wrong, or its stream is broken.
      Refused: it would take more memory than a file of this size may.
    """
    if name not in self._entries:
      raise errors.Damaged(f"its zip directory lists no {errors.quote(name)}")
    entry, start = self._entries[name]
    raw = self._data[start : start + entry.compressed]
    content = raw if entry.method == _STORED else self._inflate(name, raw, entry.size)
    if zlib.crc32(content) != entry.crc:
      raise errors.Damaged(f"the checksum of {errors.quote(name)} in it is wrong")
    return content

  def _inflate(self, name: str, raw: memoryview, size: int) -> bytes:
    with self._lock:
      self._left -= size
    if self._left < 0:
      raise errors.Refused(
        f"it is a zip bomb: its entries inflate to more than {_MAX_GROWTH} times the file's size",
        "save it again without compression",
      )
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
      content = stream.decompress(raw, size + 1)
    except zlib.error as e:
      raise errors.Damaged(f"the compressed {errors.quote(name)} in it is broken") from e
    if len(content) != size or not stream.eof:
      raise errors.Damaged(f"{errors.quote(name)} in it is not of the {size} bytes it declares")
    return content


def _directory(data: mmap.mmap | bytes) -> tuple[int, int, int]:
  """Returns the central directory's start and end, and its number of entries."""
  at = data.rfind(b"PK\x05\x06", max(0, len(data) - _END.size - _MAX_COMMENT))
  if at < 0:
    raise errors.Damaged("its zip directory is missing: the file ends early")
  _, disk, first, here, count, _, start, comment = _END.unpack_from(data, at)
  end = at
  if at + _END.size + comment != len(data):
    raise errors.Damaged("its zip directory is not at its end")
  if (
    at >= _LOCATOR64.size and data[at - _LOCATOR64.size : at - _LOCATOR64.size + 4] == b"PK\x06\x07"
  ):
    _, disk, end, _ = _LOCATOR64.unpack_from(data, at - _LOCATOR64.size)
    signature, _, _, _, first, _, here, count, _, start = _END64.unpack_from(
      data, min(end, len(data))
    )
    if signature != b"PK\x06\x06":
      raise errors.Damaged("its zip64 directory is missing")
  if disk or first or here != count:
    raise errors.Damaged("it is a part of a zip archive in several files")
  return start, end, count


def _entries(data: mmap.mmap | bytes, position: int, end: int, count: int) -> list[_Entry]:
  """Returns the entries that the central directory lists."""
  entries = []
  for _ in range(count):
    signature, _, _, flags, method, _, _, crc, *sizes, n, extra, comment, _, _, _, header = (
      _CENTRAL.unpack_from(data, position)
    )
    if signature != b"PK\x01\x02":
      raise errors.Damaged("its zip directory has an entry that is none")
    position += _CENTRAL.size
    name = data[position : position + n]
    position += n
    compressed, size = sizes
    values = _zip64(data[position : position + extra], size, compressed, header)
    position += extra + comment
    entries.append(_Entry(name, flags, method, crc, values[1], values[0], values[2]))
  if position != end:
    raise errors.Damaged("its zip directory is longer or shorter than it declares")
  return entries


def _zip64(extra: bytes, *values: int) -> list[int]:
  """Returns the values, those that are full from the zip64 field (id 1) instead."""
  if _FULL32 not in values:
    return list(values)
  position = 0
  while position + 4 <= len(extra):
    kind, length = struct.unpack_from("<HH", extra, position)
    position += 4
    if kind == 1:
      wide = iter(struct.unpack_from(f"<{values.count(_FULL32)}Q", extra, position))
      return [next(wide) if v == _FULL32 else v for v in values]
    position += length
  raise errors.Damaged("its zip directory lacks the size of a large entry")


def _decode(entry: _Entry) -> str:
  try:
    return entry.name.decode("utf-8" if entry.flags & _UTF8 else "cp437")
  except UnicodeDecodeError as e:
    raise errors.Damaged("its zip directory has a name that is no text") from e


def _payload(data: mmap.mmap | bytes, entry: _Entry) -> int:
  """Returns where an entry's bytes start, after its local header."""
  what = f"the entry {errors.quote(_decode(entry))}"
  if entry.flags & _ENCRYPTED:
    raise errors.Refused(f"{what} is encrypted", "save it without a password")
  if entry.method not in (_STORED, _DEFLATED):
    raise errors.Refused(f"{what} is compressed by method {entry.method}", "save it uncompressed")
  signature, _, flags, method, *_, n, extra = _LOCAL.unpack_from(data, min(entry.header, len(data)))
  start = entry.header + _LOCAL.size + n + extra
  name = entry.header + _LOCAL.size
  local = (signature, flags, method, data[name : name + n])  # never a slice to the file's end
  if local != (SIGNATURE, entry.flags, entry.method, entry.name):
    raise errors.Damaged(f"{what} is not where the zip directory declares it")
  if entry.method == _STORED and entry.size != entry.compressed:
    raise errors.Damaged(f"{what} declares two sizes")
  return start


def _check_overlap(entries, end: int) -> None:
  """Checks that every entry ends before the next one's header, the last before the directory."""
  spans = sorted((e.header, start + e.compressed) for e, start in entries)
  limits = [header for header, _ in spans[1:]] + [end]
  if any(span[1] > limit for span, limit in zip(spans, limits, strict=True)):
    raise errors.Damaged("its zip directory lists entries that overlap")
