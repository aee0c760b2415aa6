"""The registry: names, errors with the nearest name, and new data sets."""

import numpy as np
import pytest

from subtune_jax import data, nearest
from subtune_jax.data import choices, emoji_domains, glyph_domains, registry

EMOJI = tuple(f"emoji_domains/{name}" for name in ("fluent", "noto", "openmoji", "twemoji"))


def test_names():
  assert set(EMOJI) <= set(data.names())
  assert list(data.names()) == sorted(set(data.names()))
  assert not any(registry.folder.is_name(name) for name in data.names())


@pytest.mark.parametrize("name", EMOJI)
def test_emoji_domains_have_all_splits_and_name_their_makers(name):
  assert registry.splits_of(name) == ("train", "validation", "trainval", "test")
  assert data.attribution(name) == emoji_domains.SET.attribution[name.split("/")[1]]


def test_glyph_domains_are_listed_with_all_splits():
  glyphs = {name for name in data.names() if name.startswith("glyph_domains/")}
  assert glyphs == {f"glyph_domains/{domain}" for domain in glyph_domains.SET.attribution}
  for name in glyphs:
    assert registry.splits_of(name) == ("train", "validation", "trainval", "test")
    assert data.attribution(name) == glyph_domains.SET.attribution[name.split("/")[1]]
  assert len(data.load("glyph_domains/sans", "trainval", 16)) == 1152


def test_every_entry_has_known_splits():
  for name in data.names():
    assert set(registry.splits_of(name)) <= set(registry.SPLITS), name
  assert registry.splits_of("folder:/anywhere") == registry.SPLITS
  with pytest.raises(ValueError, match="Did you mean 'emoji_domains/noto'"):
    registry.splits_of("emoji_domains/notp")


def test_trainval_is_train_then_validation():
  both = data.load("emoji_domains/noto", "trainval", 8)
  parts = [data.load("emoji_domains/noto", split, 8) for split in ("train", "validation")]
  assert (both.split, both.name) == ("trainval", "emoji_domains/noto")
  for field in ("images", "labels", "groups", "ids"):
    joined = np.concatenate([getattr(part, field) for part in parts])
    np.testing.assert_array_equal(getattr(both, field), joined)


def test_load_is_the_reader():
  loaded = data.load("emoji_domains/noto", "validation", 32, interpolation="bilinear")
  read = emoji_domains.SET.load("noto", "validation", 32, interpolation="bilinear")
  assert (loaded.name, loaded.split) == ("emoji_domains/noto", "validation")
  assert loaded.images.shape == (174, 32, 32, 3)
  assert loaded.fingerprint() == read.fingerprint()


@pytest.mark.parametrize(
  ("name", "split", "message"),
  [
    ("emoji_domains/notto", "train", "Did you mean 'emoji_domains/noto'.*Allowed: .*fluent"),
    ("qqqqqqqqqq", "train", r"Unknown data set 'qqqqqqqqqq'\. Allowed.*'folder:/path/to/images'"),
    ("folder:", "train", r"Unknown data set 'folder:'\. Allowed.*'folder:/path/to/images'"),
    ("", "train", "Unknown data set ''"),
    (None, "train", "Unknown data set None"),
    ("emoji_domains/noto", "valid", "Unknown split 'valid'. Did you mean 'validation'"),
    ("emoji_domains/noto", "Test", "Did you mean 'test'"),
    ("folder:/tmp", "tset", "Unknown split 'tset'. Did you mean 'test'"),
  ],
)
def test_unknown_names_get_the_nearest_and_the_allowed(name, split, message):
  with pytest.raises(ValueError, match=message):
    data.load(name, split, 64)


def test_register(monkeypatch):
  monkeypatch.setattr(registry, "_REGISTERED", {})
  calls = []

  def loader(split, image_size, *, interpolation):
    calls.append((split, image_size, interpolation))
    return data.Dataset(
      images=np.zeros((1, image_size, image_size, 3), np.uint8),
      labels=np.zeros(1, np.int32),
      groups=np.array(["g"]),
      ids=np.array(["i"]),
      class_names=("only",),
      name="made/up",
      split=split,
    )

  data.register("made/up", loader, splits=("train", "test"), describe="Me")
  assert "made/up" in data.names()
  assert data.load("made/up", "test", 8).images.shape == (1, 8, 8, 3)
  assert calls == [("test", 8, "bicubic")]
  assert data.attribution("made/up") == "Me"
  with pytest.raises(ValueError, match=r"Unknown split 'validation'.*Allowed: 'train', 'test'"):
    data.load("made/up", "validation", 8)
  with pytest.raises(ValueError, match="'made/up' exists already"):
    data.register("made/up", loader)
  with pytest.raises(ValueError, match="'folder:/a' exists already"):
    data.register("folder:/a", loader)
  with pytest.raises(ValueError, match="Unknown split 'val'"):
    data.register("made/other", loader, splits=("val",))


def test_choices_without_a_near_name_offer_none():
  with pytest.raises(ValueError) as error:
    choices.check("fruit", "zzz", ("apple", "pear"))
  assert str(error.value) == "Unknown fruit 'zzz'. Allowed: 'apple', 'pear'."


def test_the_nearest_names_and_how_many():
  known = ("block1", "block14", "block15", "head")
  assert nearest.names("block", known) == ["block1", "block15", "block14"]
  assert nearest.names("block", known, most=1) == ["block1"]
  assert nearest.names("xyz", known) == []
  assert len(nearest.names("xyz", known, most=1, cutoff=0.0)) == 1
