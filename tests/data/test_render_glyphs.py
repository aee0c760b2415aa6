"""The script that renders Glyph Domains: its splits, folders and zip, from fonts that are here."""

import csv
import dataclasses
import hashlib
import importlib.util
import io
import json
import pathlib
import zipfile

import matplotlib
import numpy as np
import pytest

from subtune_jax import data
from subtune_jax.data import glyph_domains

_ROOT = pathlib.Path(__file__).parents[2]
FONTS = {"DejaVuSerif": "serif", "DejaVuSans": "sans-serif", "DejaVuSansMono": "sans-serif"}


@pytest.fixture(scope="module")
def script():
  spec = importlib.util.spec_from_file_location("render", _ROOT / "scripts" / "render_glyphs.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
  """matplotlib's fonts, laid out as @fontsource's packages are."""
  root = tmp_path_factory.mktemp("packages")
  fonts = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
  for name, category in (*FONTS.items(), ("DejaVuSansDisplay", "display")):
    licence = {"type": "OFL-1.1", "attribution": f"{name}\n| its authors"}
    add(root, name.lower(), category, licence, fonts / f"{name}.ttf")
  add(root, "closed", "serif", "Proprietary", fonts / "DejaVuSerif.ttf")
  return root


def add(root, name, category, licence, font):
  (root / name / "files").mkdir(parents=True)
  about = {"family": name, "version": "v1", "category": category, "license": licence}
  (root / name / "metadata.json").write_text(json.dumps(about))
  file = root / name / "files" / f"{name}-latin-400-normal.woff2"
  file.write_bytes(font.read_bytes())


def manifest(archive):
  return list(csv.DictReader(io.StringIO(archive.read("manifest.csv").decode())))


def test_the_shipped_splits_are_the_scripts(script):
  with zipfile.ZipFile(glyph_domains.SET.path) as archive:
    rows = manifest(archive)
  for domain in script.CATEGORIES:
    own = [script.Font(r["font"], domain, {}, {}) for r in rows if r["domain"] == domain]
    assert {f.name: f.split for f in script._split(own[::-1])} == {
      r["font"]: r["split"] for r in rows if r["domain"] == domain
    }
  assert sorted(script.packages()) == sorted(f"@fontsource/{row['font']}" for row in rows)


def test_folders_are_read_and_every_file_has_its_hash(script, packages, tmp_path, capsys):
  out = tmp_path / "out"
  given = [str(packages), str(out), "--classes=62", "--size=32", "--compare"]
  assert script.main(given) == 0
  assert capsys.readouterr().out == (
    "186 images of 3 fonts\n0 images as shipped, 0 others, 186 not in the set\n"
  )
  rows = list(csv.DictReader((out / "manifest.csv").open()))
  assert {r["font"] for r in rows} == {name.lower() for name in FONTS}  # one lacks glyphs
  for row in rows:
    assert hashlib.sha256((out / row["file"]).read_bytes()).hexdigest() == row["sha256"]
  read = data.load(f"folder:{out / 'sans'}", "whole", 32)
  assert sorted(read.class_names) == sorted(script.CLASSES[62])
  assert set(read.groups) == {"dejavusans", "dejavusansmono"}
  of_font = {r["font"] for r in rows if r["domain"] == "serif"}
  assert of_font == {"dejavuserif"}
  assert (
    "| serif | @fontsource/dejavuserif | dejavuserif | v1 | OFL-1.1 | DejaVuSerif / its"
    in (out / "LICENSES.md").read_text()
  )


def test_the_zip_is_read_as_the_shipped_one(script, packages, tmp_path):
  fonts = script.fonts_of(packages, script.CAPITALS, 64, 64)
  only = [font for font in fonts if font.domain == "serif"]
  path = tmp_path / "glyphs.zip"
  script.pack(only, path)
  one = dataclasses.replace(
    glyph_domains.SET, sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    attribution={"serif": ""}, split_sizes={"test": 36},
  )  # fmt: skip
  read = one.load("serif", "test", path=path)
  assert read.images.shape == (36, 64, 64, 3)
  for image, name in zip(read.images, read.ids, strict=True):
    np.testing.assert_array_equal(image[..., 0], only[0].glyphs[name[-1]])


def test_a_glyph_is_centred_and_its_capitals_have_the_stated_height(script, packages):
  file = packages / "dejavusans/files/dejavusans-latin-400-normal.woff2"
  for size in (64, 128):
    rows, columns = np.nonzero(np.asarray(script.render(file, "H", size)) < 128)
    assert abs(rows.max() + 1 - rows.min() - 38 * size / 64) <= 1.5
    for places in (rows, columns):
      assert abs(places.max() + places.min() - (size - 1)) <= 2


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ([], "give a folder of @fontsource packages and a folder to write"),
    (["nowhere", "out"], "nowhere holds no @fontsource package with a font that serves"),
    (["nowhere", "."], ". exists already; name a new folder"),
    (["nowhere", "out", "--size=8"], "--size is 8; give at least 16"),
    (["nowhere", "out", "--fonts=0"], "--fonts is 0; give at least 1"),
    (["nowhere", "out", "--classes=26"], "invalid choice: 26 (choose from 36, 62)"),
  ],
)
def test_wrong_arguments_are_one_error(given, message, script, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as stop:
    script.main(given)
  assert stop.value.code == 2
  assert message in capsys.readouterr().err
  assert not list(tmp_path.iterdir())
