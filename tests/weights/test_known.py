"""Weights known by name: where they are looked for, and the errors that tell how to get them."""

import hashlib

import pytest

from subtune_jax import models, weights
from subtune_jax.weights import known


@pytest.fixture
def folder(monkeypatch, tmp_path):
  monkeypatch.setenv(known.FOLDER_VARIABLE, str(tmp_path))
  return tmp_path


@pytest.mark.parametrize("name", weights.names())
def test_every_known_name_belongs_to_a_model_and_can_be_had(name):
  entry = known._KNOWN[name]
  assert name.split("/")[0] in models.names()
  assert bool(entry.url) != bool(entry.package)
  assert set(entry.sha256) <= set("0123456789abcdef")
  assert entry.preprocessing.std


@pytest.mark.parametrize(
  ("name", "url", "sha256"),
  [
    (
      "resnet50/torchvision-v1", "https://download.pytorch.org/models/resnet50-0676ba61.pth",
      "0676ba61",
    ),
    (
      "vit_b16/augreg-in21k",
      "https://storage.googleapis.com/vit_models/augreg/"
      "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz",
      "",
    ),
    (
      "clip_vit_b16/openai",
      "https://openaipublic.azureedge.net/clip/models/"
      "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
      "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    ),
  ],
)  # fmt: skip
def test_a_missing_file_is_an_error_with_the_exact_command(name, url, sha256, folder):
  entry = known._KNOWN[name]
  assert entry.sha256 == sha256
  with pytest.raises(weights.WeightsError) as error:
    weights.load_pretrained(name, models.create(name.split("/")[0], 10))
  path = folder / entry.file
  assert f"there is no file {path}" in str(error.value)
  assert str(error.value).endswith(f"run: mkdir -p {folder} && curl -fL -o {path} {url}")


def test_a_digest_is_compared_as_far_as_it_is_public(tmp_path):
  sha256 = hashlib.sha256(b"weights").hexdigest()
  entry = known.Known("a.pth", "imagenet", sha256[:8], "https://example.org/a.pth")
  known.check_digest(tmp_path, entry, sha256)
  with pytest.raises(weights.WeightsError, match=f"expected {sha256[:8]}; run: .*curl"):
    known.check_digest(tmp_path, entry, sha256[::-1])


def test_the_folder_is_the_users_cache_unless_named(monkeypatch, tmp_path):
  monkeypatch.delenv(known.FOLDER_VARIABLE, raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert known.folder() == tmp_path / "subtune_jax" / "weights"
  monkeypatch.setenv(known.FOLDER_VARIABLE, "/elsewhere")
  assert str(known.folder()) == "/elsewhere"
