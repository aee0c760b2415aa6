"""The readers of the shipped sets: exact pixels, whole groups, damaged files."""

import collections
import csv
import dataclasses
import hashlib
import io
import subprocess
import sys
import zipfile

import numpy as np
from PIL import Image
import pytest

from subtune_jax import data as data_sets
from subtune_jax.data import emoji_domains, glyph_domains, splits
from subtune_jax.runner import examples
from subtune_jax.studies.compare import config as compare_config

EMOJI, GLYPHS = emoji_domains.SET, glyph_domains.SET

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def archive():
  with zipfile.ZipFile(EMOJI.path) as archive:
    yield archive


@pytest.fixture(scope="module")
def manifest(archive):
  return list(csv.DictReader(io.StringIO(archive.read("manifest.csv").decode())))


@pytest.fixture(scope="module")
def noto():
  return {split: EMOJI.load("noto", split) for split in SPLITS}


@pytest.mark.parametrize("domain", EMOJI.attribution)
@pytest.mark.parametrize(("split", "size"), [("train", 652), ("validation", 174), ("test", 261)])
def test_counts_by_class_are_the_manifests(domain, split, size, manifest):
  data = EMOJI.load(domain, split, 8)
  rows = [row for row in manifest if (row["domain"], row["split"]) == (domain, split)]
  assert data.images.shape == (size, 8, 8, 3)
  assert data.class_names == tuple(sorted({row["class"] for row in manifest}))
  assert len(data.class_names) == 45
  counts = collections.Counter(data.class_names[label] for label in data.labels)
  assert counts == collections.Counter(row["class"] for row in rows)
  assert data.ids.tolist() == [row["file"] for row in rows]
  assert data.groups.tolist() == [row["concept"] for row in rows]


@pytest.mark.parametrize("split", SPLITS)
def test_pixels_are_those_that_pillow_decodes(split, noto, archive, manifest):
  rows = [row for row in manifest if (row["domain"], row["split"]) == ("noto", split)]
  direct = hashlib.sha256()
  for row in rows:
    direct.update(Image.open(io.BytesIO(archive.read(row["file"]))).tobytes())
  assert hashlib.sha256(noto[split].images.tobytes()).hexdigest() == direct.hexdigest()


def test_pixels_are_the_same_everywhere(noto):
  # Lossless WebP: the same bytes with every version of Pillow.
  found = {split: hashlib.sha256(noto[split].images).hexdigest()[:16] for split in SPLITS}
  assert found == {
    "train": "84e242c27e6166df",
    "validation": "664c5afbd580b931",
    "test": "ed9d28409e2b6a39",
  }


def test_labels_follow_the_folders(noto):
  for data in noto.values():
    assert data.labels.dtype == np.int32
    assert [data.class_names[label] for label in data.labels] == [
      name.split("/")[1] for name in data.ids
    ]


def test_splits_share_no_id_concept_or_image(noto):
  for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
    assert not set(noto[one].ids) & set(noto[other].ids)
    assert not set(noto[one].groups) & set(noto[other].groups)
    assert not {i.tobytes() for i in noto[one].images} & {i.tobytes() for i in noto[other].images}
  assert len(set(np.concatenate([data.ids for data in noto.values()]))) == 1087
  assert len(set(np.concatenate([data.groups for data in noto.values()]))) == 905


@pytest.mark.parametrize("domain", ["twemoji", "openmoji", "fluent"])
def test_domains_are_aligned(domain, noto):
  other = EMOJI.load(domain, "test", 8)
  np.testing.assert_array_equal(other.labels, noto["test"].labels)
  np.testing.assert_array_equal(other.groups, noto["test"].groups)
  assert other.class_names == noto["test"].class_names
  assert other.fingerprint() != EMOJI.load("noto", "test", 8).fingerprint()


@pytest.mark.parametrize(
  ("interpolation", "resampling"),
  [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)],
)
def test_resizing_is_pillows(interpolation, resampling, noto):
  small = EMOJI.load("noto", "validation", 40, interpolation=interpolation)
  for index in (0, 17, 173):
    direct = Image.fromarray(noto["validation"].images[index]).resize((40, 40), resampling)
    np.testing.assert_array_equal(small.images[index], np.asarray(direct))


def test_resizing_keeps_the_mean(noto):
  # Without antialiasing a quarter-size image would be a sample of the pixels, not their mean.
  small = EMOJI.load("noto", "validation", 24, interpolation="bilinear").images
  blocks = noto["validation"].images.reshape(174, 24, 4, 24, 4, 3).mean(axis=(2, 4))
  assert np.abs(small.mean(axis=(1, 2)) - blocks.mean(axis=(1, 2))).max() < 2.0
  assert np.sqrt(np.mean((small - blocks) ** 2)) < 10.0


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("emojione", "train"), "Unknown Emoji Domains domain 'emojione'.*Allowed: 'noto'"),
    (("twimoji", "train"), "Did you mean 'twemoji'"),
    (("noto", "tests"), "Unknown split 'tests'. Did you mean 'test'"),
    (("noto", "train", 0), "positive integer of pixels, got 0"),
    (("noto", "train", 64.0), "positive integer of pixels, got 64.0"),
    (("noto", "train", True), "positive integer of pixels, got True"),
  ],
)
def test_refuses_unknown_arguments(arguments, message):
  with pytest.raises(ValueError, match=message):
    EMOJI.load(*arguments)


def test_refuses_an_unknown_interpolation():
  with pytest.raises(ValueError, match=r"Unknown interpolation 'nearest'.*'bicubic', 'bilinear'"):
    EMOJI.load("noto", "train", 64, interpolation="nearest")


def test_missing_zip_names_the_file_and_the_fix(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no file .*gone\.zip.*Reinstall subtune_jax"):
    EMOJI.load("noto", "train", path=tmp_path / "gone.zip")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_zip_names_the_file_and_the_fix(damage, tmp_path):
  content = bytearray(EMOJI.path.read_bytes())
  if damage == "flipped":
    content[len(content) // 2] ^= 1
  content = content[: {"truncated": len(content) // 2, "flipped": None, "empty": 0}[damage]]
  path = tmp_path / "copy.zip"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r"copy\.zip is damaged.*expected a08d815a.*Reinstall"):
    EMOJI.load("noto", "train", path=path)


def test_an_intact_copy_elsewhere_reads_the_same(tmp_path, noto):
  path = tmp_path / "copy.zip"
  path.write_bytes(EMOJI.path.read_bytes())
  copy = EMOJI.load("noto", "test", path=str(path))
  assert copy.fingerprint() == noto["test"].fingerprint()


def _rewritten(own, path, change):
  """The set with its manifest changed in a new zip, whose checksum is then the expected one."""
  with zipfile.ZipFile(own.path) as source, zipfile.ZipFile(path, "w") as copy:
    lines = source.read("manifest.csv").decode().splitlines(keepends=True)
    copy.writestr("manifest.csv", "".join(change(lines)))
    for row in csv.DictReader(lines):
      if row["file"].startswith(("noto/game/", "sans/saira-semi")):
        copy.writestr(row["file"], b"not an image")
  return dataclasses.replace(own, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(("own", "classes"), [(EMOJI, 45), (GLYPHS, 36)])
def test_refuses_another_manifest(own, classes, tmp_path):
  path = tmp_path / "new.zip"
  changed = _rewritten(own, path, lambda lines: lines[:-1])
  with pytest.raises(ValueError, match=rf"manifest\.csv in .*new\.zip lists {classes} classes"):
    changed.load(next(iter(own.attribution)), "train", path=path)


@pytest.mark.parametrize(
  ("own", "file"), [(EMOJI, "noto/game/1f004"), (GLYPHS, "sans/saira-semi-condensed")]
)
def test_an_image_that_pillow_cannot_read_is_named(own, file, tmp_path):
  path = tmp_path / "new.zip"
  changed = _rewritten(own, path, lambda lines: lines)
  with pytest.raises(ValueError, match=rf"cannot read {file}\.webp.*WebP support"):
    changed.load(file.split("/")[0], "train", path=path)


def test_every_emoji_domain_has_its_licence_beside_the_zip():
  text = (EMOJI.path.parent / "LICENSES.md").read_text()
  for domain, attribution in EMOJI.attribution.items():
    drawings, package = attribution.split(", from ")
    holder, licence = drawings.removesuffix(")").rsplit(" (", 1)
    assert f"| {domain} | {holder} | {package} | {licence} |" in text


def test_reading_imports_neither_tensorflow_nor_jax():
  code = (
    "import sys; from subtune_jax import data; data.load('emoji_domains/noto', 'test', 8); "
    "print([m for m in ('tensorflow', 'tensorflow_datasets', 'jax') if m in sys.modules])"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def glyphs():
  return {(d, s): GLYPHS.load(d, s) for d in GLYPHS.attribution for s in SPLITS}


def test_glyphs_have_the_pixels_they_were_rendered_with(glyphs):
  # Of the PNGs that the packed columns were made from, decoded by Pillow, in the order of the ids.
  found = {d: hashlib.sha256(glyphs[d, "test"].images).hexdigest()[:16] for d in GLYPHS.attribution}
  assert found == {
    "serif": "9fd9a04f990774e7",
    "sans": "7d19143dd23bbc9c",
    "handwriting": "69b26b74f8396ae7",
    "display": "7a5ed645eb0e8ebc",
  }


def test_a_glyph_is_the_tile_of_its_class(glyphs):
  with zipfile.ZipFile(GLYPHS.path) as archive:
    rows = list(csv.DictReader(io.StringIO(archive.read("manifest.csv").decode())))
    columns = {r["file"]: Image.open(io.BytesIO(archive.read(r["file"]))) for r in rows}
  for row in rows:
    grey = np.asarray(columns[row["file"]].convert("L"))
    assert hashlib.sha256(grey.tobytes()).hexdigest() == row["sha256"]
    data = glyphs[row["domain"], row["split"]]
    own = data.subset(np.flatnonzero(data.groups == row["font"]))
    assert [data.class_names[label] for label in own.labels] == list(glyph_domains.CLASSES)
    assert own.ids.tolist() == [f"{row['domain']}/{row['font']}/{c}" for c in glyph_domains.CLASSES]
    np.testing.assert_array_equal(own.images[..., 1].reshape(grey.shape), grey)


def test_glyph_splits_are_by_font(glyphs):
  fonts = {key: set(data.groups) for key, data in glyphs.items()}
  sizes = {"train": 26, "validation": 6, "test": 32}
  assert {key: len(own) for key, own in fonts.items()} == {key: sizes[key[1]] for key in fonts}
  assert len(set().union(*fonts.values())) == 256


def test_glyphs_on_both_sides_are_those_of_families_that_the_docs_name(glyphs):
  counts = {}
  for domain in GLYPHS.attribution:
    train = {image.tobytes() for image in glyphs[domain, "train"].images}
    counts[domain] = sum(image.tobytes() in train for image in glyphs[domain, "test"].images)
  assert counts == {"serif": 52, "sans": 0, "handwriting": 0, "display": 69}


@pytest.mark.parametrize("seed", [0, 1])
def test_subsets_of_fonts_nest_and_have_every_class_as_often(seed, glyphs):
  full = glyphs["serif", "train"]
  config = compare_config.default()
  config.data.update({"train": "glyph_domains/serif", "image_size": 64, "subset_seed": seed})
  before: set[str] = set()
  for fonts in (5, 10, 26):
    config.data.num_train = 36 * fonts
    train, validation, _, _ = examples.load_data(config)
    assert np.bincount(train.labels).tolist() == [fonts] * 36
    assert len(set(train.groups)) == fonts
    assert before < set(train.ids) <= set(full.ids)
    assert len(validation) == 216
    before = set(train.ids)
  (other,) = splits.nested_subsets(full.labels, [180], seed + 1, full.groups)
  (own,) = splits.nested_subsets(full.labels, [180], seed, full.groups)
  assert set(full.groups[own]) != set(full.groups[other])


def test_every_font_has_its_licence_beside_the_zip(glyphs):
  lines = (GLYPHS.path.parent / "LICENSES.md").read_text().splitlines()
  rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
  assert {(row[0], row[1].removeprefix("@fontsource/")) for row in rows} == {
    (domain, font) for (domain, _), data in glyphs.items() for font in data.groups
  }
  assert {row[4] for row in rows} == {"OFL-1.1", "Apache-2.0"}
  assert all(len(row) == 6 and row[5] for row in rows)
  assert "LICENSES.md" in data_sets.attribution("glyph_domains/serif")
