"""Corrupted names: every data set has its corrupted copies, the same each time."""

import numpy as np
from PIL import Image
import pytest

from subtune_jax import data
from subtune_jax.data import corrupted, corruptions, lazy, registry

NOTO = "emoji_domains/noto"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("SUBTUNE_JAX_CACHE", str(tmp_path / "cache"))


def of_one_class(n=5, size=32, name="made/up", split="test"):
  images = np.random.default_rng(0).integers(0, 256, (n, size, size, 3)).astype(np.uint8)
  ids = np.array([f"id{i}" for i in range(n)])
  labels = np.zeros(n, np.int32)
  return data.Dataset(images, labels, ids, ids, ("only",), name, split)


def test_emoji_domains_are_corrupted_one_by_one():
  clean = data.load(NOTO, "test", 32)
  fog = data.load(f"{NOTO}+fog/3", "test", 32)
  assert (fog.name, fog.split) == (f"{NOTO}+fog/3", "test")
  for field in ("labels", "groups", "ids", "class_names"):
    np.testing.assert_array_equal(getattr(fog, field), getattr(clean, field))
  seed = corrupted.seed(NOTO, "test")
  for index in (0, 100, len(clean) - 1):
    expected = corruptions.corrupt(
      clean.images[index], "fog", 3, table="cifar10_c", seed=seed, index=index
    )
    np.testing.assert_array_equal(fog.images[index], expected)
  again = data.load(f"{NOTO}+fog/3", "test", 32)  # from the cache
  assert again.fingerprint() == fog.fingerprint() != clean.fingerprint()
  assert data.attribution(fog.name) == data.attribution(NOTO)
  assert data.load(f"{NOTO}+fog/3", "test", 32, interpolation="bilinear").fingerprint() not in (
    fog.fingerprint(), data.load(NOTO, "test", 32, interpolation="bilinear").fingerprint(),
  )  # fmt: skip


def test_the_seed_comes_from_the_name_and_is_the_same_on_every_machine():
  assert corrupted.seed(NOTO, "test") == 48910649370350 != corrupted.seed(NOTO, "train")
  assert corrupted.seed("folder:/a/pets", "test") == corrupted.seed("folder:/b/pets", "test")


@pytest.mark.parametrize(
  ("size", "table"), [(32, "cifar10_c"), (64, "cifar10_c"), (65, "imagenet_c")]
)
def test_the_table_follows_the_size(size, table):
  assert corrupted.table_for(size) == table
  made = of_one_class(2, size)
  expected = corruptions.corrupt(
    made.images[1], "contrast", 5, table=table, seed=corrupted.seed("made/up", "test"), index=1
  )
  np.testing.assert_array_equal(corrupted.apply(made, "contrast", 5).images[1], expected)


def test_what_does_not_fit_the_cache_is_corrupted_on_demand(monkeypatch, tmp_path):
  made = of_one_class()
  cached = corrupted.apply(made, "gaussian_noise", 2)
  monkeypatch.setenv("SUBTUNE_JAX_CACHE_BYTES", "0")
  on_demand = corrupted.apply(made, "gaussian_noise", 2)
  assert isinstance(on_demand.images, lazy.LazyImages)
  np.testing.assert_array_equal(on_demand.images[:], cached.images)
  part = on_demand.subset([4, 1])  # an image keeps its noise
  np.testing.assert_array_equal(part.images[:], cached.images[[4, 1]])
  prints = {on_demand.fingerprint(), corrupted.apply(made, "gaussian_noise", 3).fingerprint()}
  assert len(prints) == 2


def test_a_folder_stays_lazy(tmp_path, monkeypatch):
  monkeypatch.setenv("SUBTUNE_JAX_CACHE_BYTES", "0")
  root = tmp_path / "a+b"
  for place in ("train/x", "train/y", "test/x", "test/y"):
    (root / place).mkdir(parents=True)
    for i in range(3):
      Image.fromarray(np.full((20, 20, 3), 40 * i, np.uint8)).save(root / place / f"{i}.png")
  name = f"folder:{root}"
  assert data.base_name(name) == name
  clean, snow = data.load(name, "test", 16), data.load(f"{name}+snow/5", "test", 16)
  assert isinstance(snow.images, lazy.LazyImages)
  assert snow.name == f"{clean.name}+snow/5"
  assert (snow.images[:] != clean.images[:]).any()
  np.testing.assert_array_equal(snow.images[[3]], snow.images[:][[3]])
  (root / "test/x/0.png").write_text("no image")
  assert len(data.load(f"{name}?on_broken=skip+snow/5", "test", 16)) == 5


@pytest.mark.parametrize(
  ("name", "message"),
  [
    (f"{NOTO}+fogg/3", "Unknown corruption in .*Did you mean 'fog'.*'jpeg_compression'"),
    (f"{NOTO}+fog/6", "Unknown severity '6' in .*noto.fog/1 to 5"),
    (f"{NOTO}+fog", "Unknown severity '' in"),
    (f"{NOTO}+", "Unknown corruption in"),
    ("emoji_domains/notto+fog/1", "Unknown data set 'emoji_domains/notto'.*Did you mean"),
    ("folder:/no/such/place+fog/1", "'folder:/no/such/place'"),
  ],
)
def test_wrong_names_say_what_is_allowed(name, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    data.require(name)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    data.load(name, "test", 32)


def test_an_image_too_small_is_refused_at_once():
  with pytest.raises(ValueError, match=r"fog/1: image_size=8 is too small .* 16 or more"):
    data.load(f"{NOTO}+fog/1", "test", 8)


def test_a_name_that_is_registered_stands_for_itself(monkeypatch):
  monkeypatch.setattr(registry, "_REGISTERED", {})
  data.register("a+b", lambda split, image_size, *, interpolation: of_one_class(name="a+b"))
  assert data.base_name("a+b") == "a+b"
  assert data.load("a+b", "test", 32).name == "a+b"
  assert data.base_name("a+b+fog/1") == "a+b"
  assert data.load("a+b+fog/1", "test", 32).name == "a+b+fog/1"
  data.require("a+b+fog/1")
