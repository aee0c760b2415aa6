"""Files that are no images, half images, or claim to be huge: named, never a crash, little memory.

The files are made from a seed; the folder is loaded in a process of its own, whose memory is read.
"""

import io
import json
import os
import pathlib
import struct
import subprocess
import sys
import zlib

import numpy as np
from PIL import Image
import pytest

from subtune_jax.data import decode

SEED = 0
PER_KIND = {"half": 200, "flipped": 170, "random": 80, "text": 20, "zero": 20, "good": 40}
MORE_MEMORY = 1024  # MiB above that of the same process before it loads the folder
SUFFIXES = ("png", "jpg", "gif", "webp", "bmp", "tiff")


def encoded(rng, suffix, **options) -> bytes:
  pixels = rng.integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
  file = io.BytesIO()
  format_name = {"jpg": "jpeg"}.get(suffix, suffix)
  Image.fromarray(pixels).save(file, format_name, **options)
  return file.getvalue()


def png(width, height) -> bytes:
  def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

  header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
  return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))


def jpeg(rng, width, height) -> bytes:
  content = encoded(rng, "jpg")
  at = content.index(b"\xff\xc0") + 5
  return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def webp(kind, width, height) -> bytes:
  if kind == b"VP8X":
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = bytes(4) + size
  elif kind == b"VP8L":
    size = ((width - 1) | (height - 1) << 14).to_bytes(4, "little")
    body = b"\x2f" + size + bytes(20)
  else:
    body = b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(20)
  chunk = kind + struct.pack("<I", len(body)) + body
  return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def bmp(width, height) -> bytes:
  info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
  return b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + info + bytes(900)


def huge(rng) -> dict[str, bytes]:
  """Headers of more than 100 megapixels, over little or no content."""
  gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(3)
  frame = b"," + struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\0\x02\x02\x44\x01\0;"
  small_screen = b"GIF89a" + struct.pack("<HH", 10, 10) + bytes(3)
  found = {"screen.gif": gif + frame, "frame.gif": small_screen + frame}
  for width, height in ((65500, 65500), (10001, 10000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)):
    found[f"{width}x{height}.png"] = png(width, height)
    found[f"{width}x{height}.bmp"] = bmp(width, height)
  for width, height in ((65500, 65500), (10001, 10000), (65500, 1600)):
    found[f"{width}x{height}.jpg"] = jpeg(rng, width, height)
  for kind in (b"VP8X", b"VP8L", b"VP8 "):
    found[f"{kind.decode().strip()}.webp"] = webp(kind, 16383, 16383)
  found["canvas.webp"] = webp(b"VP8X", 2**24, 2**24)
  return found


def almost_huge(rng) -> dict[str, bytes]:
  """Headers of just under 100 megapixels over too little content."""
  found = {}
  for i in range(6):
    found[f"almost {i}.png"] = png(9999, 9999)
    found[f"almost {i}.jpg"] = jpeg(rng, 9999, 9999)[:-300]
    found[f"almost {i}.bmp"] = bmp(9999, 9999)
    found[f"almost {i}.webp"] = webp((b"VP8X", b"VP8L")[i % 2], 9999, 9999)
  return found


def contents(rng) -> tuple[dict[str, bytes], set[str], set[str]]:
  """(content by name, names that must be refused, names that must be read)."""
  files = {}
  for i in range(PER_KIND["half"]):
    suffix = SUFFIXES[i % len(SUFFIXES)]
    whole = encoded(rng, suffix)
    files[f"half {i}.{suffix}"] = whole[: rng.integers(1, len(whole) // 2)]
  for i in range(PER_KIND["random"]):
    files[f"random {i}.{SUFFIXES[i % 6]}"] = rng.bytes(int(rng.integers(1, 3000)))
  for i in range(PER_KIND["text"]):
    files[f"text {i}.{SUFFIXES[i % 6]}"] = b"<html>not found</html>\n" * (i + 1)
  for i in range(PER_KIND["zero"]):
    files[f"zero {i}.{SUFFIXES[i % 6]}"] = b"" if i % 2 else bytes(i * 100)
  files |= huge(rng) | almost_huge(rng)
  bad = set(files)
  for i in range(PER_KIND["flipped"]):
    suffix = SUFFIXES[i % len(SUFFIXES)]
    content = bytearray(encoded(rng, suffix))
    for _ in range(int(rng.integers(1, 20))):
      content[rng.integers(len(content))] = rng.integers(256)
    files[f"flipped {i}.{suffix}"] = bytes(content)
  good = {}
  for i in range(PER_KIND["good"]):
    good[f"good {i}.{SUFFIXES[i % 6]}"] = encoded(rng, SUFFIXES[i % 6])
  for suffix in ("gif", "webp", "png", "tiff"):
    frames = [Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)) for _ in range(5)]
    options = {"save_all": True, "append_images": frames}
    good[f"good animated.{suffix}"] = encoded(rng, suffix, **options)
  return files | good, bad, set(good)


def links(folder: pathlib.Path) -> set[str]:
  """Makes links that lead nowhere or in circles, and things that are no files; their names."""
  (folder / "own.jpg").symlink_to("own.jpg")
  (folder / "there.jpg").symlink_to("back.jpg")
  (folder / "back.jpg").symlink_to("there.jpg")
  (folder / "nowhere.jpg").symlink_to("missing.jpg")
  (folder / "up").symlink_to("..")
  (folder / "self").symlink_to(".")
  os.mkfifo(folder / "pipe.jpg")
  return {"own.jpg", "there.jpg", "back.jpg", "nowhere.jpg", "up", "self", "pipe.jpg"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
  """(folder of all files, those that must be refused, those that must be read)."""
  root = tmp_path_factory.mktemp("hostile") / "images"
  (root / "a").mkdir(parents=True)
  files, bad, good = contents(np.random.default_rng(SEED))
  for name, content in files.items():
    (root / "a" / name).write_bytes(content)
  return root, bad | links(root / "a"), good


SCRIPT = """
import json, sys
from subtune_jax import data
from subtune_jax.data import cache, errors

def peak():
  with open("/proc/self/status") as lines:
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

before = peak()
root, cached = sys.argv[1:]
try:
  data.load(f"folder:{root}", "train", 24)
except errors.BrokenImageError as error:
  refused = str(error)
kept = []
for split in ("trainval", "test"):
  part = data.load(f"folder:{root}?on_broken=skip", split, 24)
  assert part.images[:].shape == (len(part), 24, 24, 3)
  kept += part.ids.tolist()
print(json.dumps({"refused": refused, "kept": kept, "more": peak() - before}))
"""


@pytest.mark.parametrize("limit", ["1000000000", "0"])
def test_hostile_files_are_named_and_skipped(hostile, tmp_path, limit):
  root, bad, good = hostile
  total = sum(1 for name in (root / "a").iterdir())
  assert total - len(good) >= 500
  environment = os.environ | {
    "SUBTUNE_JAX_CACHE": str(tmp_path), "SUBTUNE_JAX_CACHE_BYTES": limit, "PYTHONWARNINGS": "ignore"
  }  # fmt: skip
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, root, limit],
    capture_output=True, text=True, timeout=100, env=environment,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout)
  kept = {name.removeprefix("a/") for name in found["kept"]}
  assert len(kept) == len(found["kept"])
  assert kept >= good
  assert not kept & bad
  assert f": {total - len(kept)} images cannot be read: a/" in found["refused"]
  assert found["refused"].count(" (") == 10
  assert f"and {total - len(kept) - 10} more" in found["refused"]
  assert found["more"] < MORE_MEMORY


def test_headers_of_gigapixels_say_so(hostile):
  root, bad, _ = hostile
  names = [name for name in huge(np.random.default_rng(SEED)) if name in bad]
  reasons = {name: decode.problem(root / "a" / name) for name in names}
  assert all(reasons.values())
  unclear = {name: why for name, why in reasons.items() if "gigapixel header" not in why}
  # A width of 2**31 - 1 is refused by the formats themselves.
  assert all(name.startswith("2147483647") for name in unclear), unclear


def test_problem_and_square_agree(hostile):
  root, _, good = hostile
  for name in [*sorted(good)[::7], "zero 1.jpg", "text 0.png"]:
    problem = decode.problem(root / "a" / name)
    assert (problem == "") == (name in good)
    if problem:
      with pytest.raises(ValueError) as caught:
        decode.square(root / "a" / name, 8)
      assert str(caught.value) == f"{root / 'a' / name}: {problem}"
