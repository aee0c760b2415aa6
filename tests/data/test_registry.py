"""The registry: names, errors with the nearest name, and new data sets."""

import numpy as np
import pytest

from subtune_jax import data
from subtune_jax.data import choices, emoji_domains, registry


def test_names():
  assert data.names() == (
    "emoji_domains/fluent",
    "emoji_domains/noto",
    "emoji_domains/openmoji",
    "emoji_domains/twemoji",
  )


def test_load_is_the_reader():
  loaded = data.load("emoji_domains/noto", "validation", 32, interpolation="bilinear")
  read = emoji_domains.load("noto", "validation", 32, interpolation="bilinear")
  assert (loaded.name, loaded.split) == ("emoji_domains/noto", "validation")
  assert loaded.images.shape == (174, 32, 32, 3)
  assert loaded.fingerprint() == read.fingerprint()


@pytest.mark.parametrize(
  ("name", "split", "message"),
  [
    ("emoji_domains/notto", "train", "Did you mean 'emoji_domains/noto'.*Allowed: .*fluent"),
    ("imagenet", "train", r"Unknown data set 'imagenet'\. Allowed"),
    ("", "train", "Unknown data set ''"),
    (None, "train", "Unknown data set None"),
    ("emoji_domains/noto", "valid", "Unknown split 'valid'. Did you mean 'validation'"),
    ("emoji_domains/noto", "Test", "Did you mean 'test'"),
  ],
)
def test_unknown_names_get_the_nearest_and_the_allowed(name, split, message):
  with pytest.raises(ValueError, match=message):
    data.load(name, split, 64)


def test_register(monkeypatch):
  monkeypatch.setattr(registry, "_LOADERS", dict(registry._LOADERS))
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

  data.register("made/up", loader)
  assert "made/up" in data.names()
  assert data.load("made/up", "test", 8).images.shape == (1, 8, 8, 3)
  assert calls == [("test", 8, "bicubic")]
  with pytest.raises(ValueError, match="'made/up' exists already"):
    data.register("made/up", loader)


def test_choices_without_a_near_name_offer_none():
  with pytest.raises(ValueError) as error:
    choices.check("fruit", "zzz", ("apple", "pear"))
  assert str(error.value) == "Unknown fruit 'zzz'. Allowed: 'apple', 'pear'."
