r"""Renders Glyph Domains anew from the fonts of npm's @fontsource packages.

  npm install --ignore-scripts --prefix /tmp/fonts $(python scripts/render_glyphs.py --packages)
  python scripts/render_glyphs.py /tmp/fonts/node_modules/@fontsource glyphs

writes one folder of images per domain, `glyphs/serif/...`, with a labels.csv, so that
`--config.data.train=folder:glyphs/serif` reads it; `glyphs/manifest.csv` with the SHA-256 of every
file; and `glyphs/LICENSES.md`. Options make other sets: `--size 128`, `--classes 62` (small letters
too), `--fonts 100` (of each domain; install more packages, any of npm's @fontsource will do) and
`--zip FILE` (packed as the set that comes with this library).

Each glyph is centred, dark on light, at a size where the font's capital H is 38/64 of the height.
A font is left out that lacks a glyph, draws two classes alike (one pair may be: O and 0, I and 1)
or is not under OFL, Apache or UFL. Fonts are taken in the order of sha256("glyph_domains/NAME"),
and split by that of sha256("glyph_domains/split/NAME"): 26 of 64 train, 6 validate, 32 test.

Does it give the same pixels? `--compare` counts the images that are equal to the shipped ones.
Of 8 packages, two a domain (5.3.0 of 2026-11-28, Pillow 13.0.0), all 288 were; another version of a
font or of FreeType may draw others.
"""

import argparse
from collections.abc import Iterable
import csv
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import pathlib
import sys
import zipfile

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from subtune_jax.data import glyph_domains

CATEGORIES = {
  "serif": "serif",
  "sans": "sans-serif",
  "handwriting": "handwriting",
  "display": "display",
}  # domain -> the fonts' own category
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
CLASSES = {36: CAPITALS, 62: CAPITALS + CAPITALS[:26].lower()}
FREE = ("OFL", "Apache", "UFL")
LEVELS = 16  # of grey in one image


@dataclasses.dataclass(frozen=True)
class Font:
  """A font that is taken.

  Attributes:
    name: of its package.
    domain: key of `CATEGORIES`.
    glyphs: class -> [size, size] uint8.
    about: "family", "version", "license", "attribution".
    split: "train", "validation" or "test".
  """

  name: str
  domain: str
  glyphs: dict[str, np.ndarray]
  about: dict[str, str]
  split: str = ""


def digest(name: str) -> str:
  """Returns what fonts are ordered by."""
  return hashlib.sha256(f"glyph_domains/{name}".encode()).hexdigest()


def render(file: pathlib.Path, char: str, size: int) -> Image.Image:
  """Returns one glyph, [size, size] grey."""
  _, top, _, bottom = ImageFont.truetype(str(file), 200).getbbox("H")
  points = max(8, round(200 * (38 * size / 64 / max(bottom - top, 1))))
  font = ImageFont.truetype(str(file), points)
  left, top, right, bottom = font.getbbox(char)
  middle = 2 * size
  image = Image.new("L", (2 * middle, 2 * middle), 255)
  corner = (middle - (left + right) / 2, middle - (top + bottom) / 2)
  ImageDraw.Draw(image).text(corner, char, fill=0, font=font)
  margin = 6 * size / 64
  half = max(size, right - left + margin, bottom - top + margin) / 2
  low, high = round(middle - half), round(middle + half)
  crop = image.crop((low, low, high, high))
  square = (size, size)
  return crop if crop.size == square else crop.resize(square, Image.Resampling.BICUBIC)


def glyphs_of(file: pathlib.Path, classes: str, size: int) -> dict[str, np.ndarray] | None:
  """Returns class -> [size, size] uint8 of `LEVELS` levels; None where the font does not serve."""
  found = {}
  none = np.asarray(render(file, "\uffff", size))
  for char in classes:
    glyph = np.asarray(render(file, char, size))
    ink = glyph < 128
    if ink.sum() < 20 * (size / 64) ** 2 or ink.mean() > 0.6 or np.array_equal(glyph, none):
      return None
    found[char] = glyph
  alike = sum(np.array_equal(a, b) for a, b in itertools.combinations(found.values(), 2))
  if alike > 1:
    return None
  return {
    char: np.asarray(Image.fromarray(glyph).quantize(LEVELS).convert("L"))
    for char, glyph in found.items()
  }


def fonts_of(folder: pathlib.Path, classes: str, size: int, number: int) -> list[Font]:
  """Returns up to `number` fonts of each domain, split, those of a domain and split together.

  Raises:
    ValueError: no package with a font that serves.
  """
  taken = {domain: [] for domain in CATEGORIES}
  domain_of = {category: domain for domain, category in CATEGORIES.items()}
  for path in sorted(folder.glob("*/metadata.json"), key=lambda p: digest(p.parent.name)):
    font = _read(path, domain_of, classes, size, {d for d in taken if len(taken[d]) < number})
    if font:
      taken[font.domain].append(font)
  if not any(taken.values()):
    raise ValueError(f"{folder} holds no @fontsource package with a font that serves")
  return list(itertools.chain.from_iterable(map(_split, taken.values())))


def _read(
  path: pathlib.Path, domain_of: dict[str, str], classes: str, size: int, wanted: set[str]
) -> Font | None:
  about = json.loads(path.read_text())
  name, domain = path.parent.name, domain_of.get(about.get("category"), "")
  licence = about.get("license", "")
  licence = licence if isinstance(licence, dict) else {"type": licence}
  file = next(path.parent.glob(f"**/{name}-latin-400-normal.woff2"), None)
  if domain not in wanted or file is None or not licence["type"].startswith(FREE):
    return None
  glyphs = glyphs_of(file, classes, size)
  facts = {
    "family": about["family"],
    "version": about["version"],
    "license": licence["type"],
    "attribution": licence.get("attribution", ""),
  }
  return Font(name, domain, glyphs, facts) if glyphs else None


def _split(fonts: list[Font]) -> list[Font]:
  ends = {"train": len(fonts) * 26 // 64, "validation": len(fonts) * 32 // 64, "test": len(fonts)}
  order = sorted(fonts, key=lambda font: digest(f"split/{font.name}"))
  return [
    dataclasses.replace(font, split=next(s for s, end in ends.items() if number < end))
    for number, font in enumerate(order)
  ]


def write_folder(fonts: Iterable[Font], out: pathlib.Path) -> int:
  """Writes images, labels.csv of each domain, manifest.csv and LICENSES.md; returns how many."""
  manifest, labels = [], {}
  for font in fonts:
    (out / font.domain / font.name).mkdir(parents=True, exist_ok=True)
    for char, glyph in font.glyphs.items():
      file = f"{font.name}/{'small_' if char.islower() else ''}{char}.png"
      path = out / font.domain / file
      Image.fromarray(glyph).save(path, optimize=True)
      sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
      row = (f"{font.domain}/{file}", font.domain, font.name, char, font.split, sha256)
      manifest.append(row)
      labels.setdefault(font.domain, []).append((file, char, font.split, font.name))
  for domain, rows in labels.items():
    _write_csv(out / domain / "labels.csv", ("file", "label", "split", "group"), rows)
  _write_csv(out / "manifest.csv", ("file", "domain", "font", "class", "split", "sha256"), manifest)
  (out / "LICENSES.md").write_text(licences(fonts))
  return len(manifest)


def _write_csv(path: pathlib.Path, head: tuple[str, ...], rows: list[tuple]) -> None:
  with path.open("w", newline="") as file:
    csv.writer(file, lineterminator="\n").writerows([head, *rows])


def licences(fonts: Iterable[Font]) -> str:
  """Returns a table of the fonts in Markdown."""
  head = "# Fonts\n\n| domain | package | family | version | licence | attribution |\n"
  lines = [head + "|---|---|---|---|---|---|"]
  for font in fonts:
    cells = (font.domain, f"@fontsource/{font.name}", *font.about.values())
    plain = (" ".join(cell.split()).replace("|", "/") for cell in cells)
    lines.append(f"| {' | '.join(plain)} |")
  return "\n".join(lines) + "\n"


def pack(fonts: Iterable[Font], path: pathlib.Path) -> None:
  """Writes the zip that the package ships: an image of each font, its glyphs in a column.

  A row of manifest.csv has the SHA-256 of the column's grey pixels, row by row.
  """
  rows = ["file,domain,font,split,sha256"]
  with zipfile.ZipFile(path, "w") as archive:

    def put(name, content, how):
      info = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
      archive.writestr(info, content, how)

    for font in fonts:
      column = np.concatenate([font.glyphs[c] for c in sorted(font.glyphs)])
      buffer = io.BytesIO()
      Image.fromarray(column).convert("RGB").save(buffer, "WEBP", lossless=True, method=4)
      file = f"{font.domain}/{font.name}.webp"
      put(file, buffer.getvalue(), zipfile.ZIP_STORED)
      sha256 = hashlib.sha256(column.tobytes()).hexdigest()
      rows.append(f"{file},{font.domain},{font.name},{font.split},{sha256}")
    put("manifest.csv", "\n".join(rows) + "\n", zipfile.ZIP_DEFLATED)


def compare(fonts: Iterable[Font]) -> str:
  """Says how many images are those of the shipped set, pixel by pixel, and how far others are."""
  equal, off, new = 0, [], 0
  for font in fonts:
    shipped = _shipped(font.domain)
    for char, glyph in font.glyphs.items():
      other = shipped.get(f"{font.domain}/{font.name}/{char}")
      if other is None or other.shape != glyph.shape:
        new += 1
      elif np.array_equal(other, glyph):
        equal += 1
      else:
        off.append(np.abs(other.astype(int) - glyph).mean())
  mean = f", by {np.mean(off):.2f} of 255 grey levels in the mean" if off else ""
  return f"{equal} images as shipped, {len(off)} others{mean}, {new} not in the set"


@functools.cache
def _shipped(domain: str) -> dict[str, np.ndarray]:
  """The shipped images by their ids."""
  parts = [glyph_domains.SET.load(domain, s) for s in glyph_domains.SET.split_sizes]
  return {
    name: image[..., 0] for part in parts for name, image in zip(part.ids, part.images, strict=True)
  }


def packages() -> list[str]:
  """Returns the names of the packages that the shipped set was made from."""
  with zipfile.ZipFile(glyph_domains.SET.path) as archive:
    rows = csv.DictReader(io.StringIO(archive.read("manifest.csv").decode()))
    return [f"@fontsource/{row['font']}" for row in rows]


def main(arguments: list[str] | None = None) -> int:
  """Renders what the command line asks for; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("source", nargs="?", type=pathlib.Path, help="folder of packages")
  parser.add_argument("out", nargs="?", type=pathlib.Path, help="folder to write")
  parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
  parser.add_argument("--classes", type=int, choices=CLASSES, default=36)
  parser.add_argument("--fonts", type=int, default=64, help="most fonts of a domain")
  parser.add_argument("--zip", type=pathlib.Path, help="also write the packed set")
  parser.add_argument("--compare", action="store_true", help="with the shipped set")
  parser.add_argument("--packages", action="store_true", help="print the npm packages, and stop")
  options = parser.parse_args(arguments)
  if options.packages:
    sys.stdout.write(" ".join(packages()) + "\n")
    return 0
  if options.source is None or options.out is None:
    parser.error("give a folder of @fontsource packages and a folder to write")
  for name, least in (("size", 16), ("fonts", 1)):
    if getattr(options, name) < least:
      parser.error(f"--{name} is {getattr(options, name)}; give at least {least}")
  if options.out.exists():
    parser.error(f"{options.out} exists already; name a new folder")
  try:
    fonts = fonts_of(options.source, CLASSES[options.classes], options.size, options.fonts)
  except ValueError as error:
    parser.error(str(error))
  sys.stdout.write(f"{write_folder(fonts, options.out)} images of {len(fonts)} fonts\n")
  if options.zip:
    pack(fonts, options.zip)
  if options.compare:
    sys.stdout.write(compare(fonts) + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main())
