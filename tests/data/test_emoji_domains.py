"""The reader of Emoji Domains: exact pixels, whole concepts, damaged files."""

import collections
import csv
import hashlib
import io
import subprocess
import sys
import zipfile

import numpy as np
from PIL import Image
import pytest

from subtune_jax.data import emoji_domains

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def archive():
  with zipfile.ZipFile(emoji_domains.DEFAULT_PATH) as archive:
    yield archive


@pytest.fixture(scope="module")
def manifest(archive):
  return list(csv.DictReader(io.StringIO(archive.read("manifest.csv").decode())))


@pytest.fixture(scope="module")
def noto():
  return {split: emoji_domains.load("noto", split) for split in SPLITS}


@pytest.mark.parametrize("domain", emoji_domains.DOMAINS)
@pytest.mark.parametrize(("split", "size"), [("train", 652), ("validation", 174), ("test", 261)])
def test_counts_by_class_are_the_manifests(domain, split, size, manifest):
  data = emoji_domains.load(domain, split, 8)
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
  other = emoji_domains.load(domain, "test", 8)
  np.testing.assert_array_equal(other.labels, noto["test"].labels)
  np.testing.assert_array_equal(other.groups, noto["test"].groups)
  assert other.class_names == noto["test"].class_names
  assert other.fingerprint() != emoji_domains.load("noto", "test", 8).fingerprint()


@pytest.mark.parametrize(
  ("interpolation", "resampling"),
  [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)],
)
def test_resizing_is_pillows(interpolation, resampling, noto):
  small = emoji_domains.load("noto", "validation", 40, interpolation=interpolation)
  for index in (0, 17, 173):
    direct = Image.fromarray(noto["validation"].images[index]).resize((40, 40), resampling)
    np.testing.assert_array_equal(small.images[index], np.asarray(direct))


def test_resizing_keeps_the_mean(noto):
  # Without antialiasing a quarter-size image would be a sample of the pixels, not their mean.
  small = emoji_domains.load("noto", "validation", 24, interpolation="bilinear").images
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
    emoji_domains.load(*arguments)


def test_refuses_an_unknown_interpolation():
  with pytest.raises(ValueError, match=r"Unknown interpolation 'nearest'.*'bicubic', 'bilinear'"):
    emoji_domains.load("noto", "train", 64, interpolation="nearest")


def test_missing_zip_names_the_file_and_the_fix(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no file .*gone\.zip.*Reinstall subtune_jax"):
    emoji_domains.load("noto", "train", path=tmp_path / "gone.zip")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_zip_names_the_file_and_the_fix(damage, tmp_path):
  content = bytearray(emoji_domains.DEFAULT_PATH.read_bytes())
  if damage == "flipped":
    content[len(content) // 2] ^= 1
  content = content[: {"truncated": len(content) // 2, "flipped": None, "empty": 0}[damage]]
  path = tmp_path / "copy.zip"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r"copy\.zip is damaged.*expected a08d815a.*Reinstall"):
    emoji_domains.load("noto", "train", path=path)


def test_an_intact_copy_elsewhere_reads_the_same(tmp_path, noto):
  path = tmp_path / "copy.zip"
  path.write_bytes(emoji_domains.DEFAULT_PATH.read_bytes())
  copy = emoji_domains.load("noto", "test", path=str(path))
  assert copy.fingerprint() == noto["test"].fingerprint()


def _rewrite(path, monkeypatch, change):
  """Writes the manifest, changed, to a new zip whose checksum is then the expected one."""
  with zipfile.ZipFile(emoji_domains.DEFAULT_PATH) as source, zipfile.ZipFile(path, "w") as copy:
    lines = source.read("manifest.csv").decode().splitlines(keepends=True)
    copy.writestr("manifest.csv", "".join(change(lines)))
    for row in csv.DictReader(lines):
      if row["file"].startswith("noto/game/"):
        copy.writestr(row["file"], b"not an image")
  monkeypatch.setattr(emoji_domains, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())


def test_refuses_another_manifest(tmp_path, monkeypatch):
  _rewrite(tmp_path / "new.zip", monkeypatch, lambda lines: lines[:-1])
  with pytest.raises(ValueError, match=r"manifest\.csv in .*new\.zip lists 45 classes"):
    emoji_domains.load("noto", "train", path=tmp_path / "new.zip")


def test_an_image_that_pillow_cannot_read_is_named(tmp_path, monkeypatch):
  _rewrite(tmp_path / "new.zip", monkeypatch, lambda lines: lines)
  with pytest.raises(ValueError, match=r"cannot read noto/game/1f004\.webp.*WebP support"):
    emoji_domains.load("noto", "train", path=tmp_path / "new.zip")


def test_every_domain_has_its_licence_beside_the_zip():
  text = (emoji_domains.DEFAULT_PATH.parent / "LICENSES.md").read_text()
  for domain, attribution in emoji_domains.ATTRIBUTION.items():
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
