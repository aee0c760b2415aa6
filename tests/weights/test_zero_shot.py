"""Zero-shot heads: from class names and prompts to CLIP's own logits."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import models, weights
from subtune_jax.models import backbone, vit
from subtune_jax.weights import zero_shot

_ROOT = pathlib.Path(__file__).parents[2]
_CLASSES = ("cat", "dog", "ab")


def _vit(**fields) -> vit.ViT:
  shape = {
    "width": 32, "depth": 2, "heads": 2, "mlp_width": 64, "patch_size": 8, "image_size": 16,
    "norm_epsilon": 1e-5, "activation": "quick_gelu", "pre_norm": True, "patch_bias": False,
    "projection": 12, "normalize_features": True,
  }  # fmt: skip
  return vit.ViT(**{"num_classes": 3, **shape, **fields})


@pytest.fixture
def file(tmp_path):
  """Embeddings of length 2; the second class is the opposite of the first."""
  rows = np.zeros((3, 12), np.float32)
  rows[0, 0], rows[1, 0], rows[2, 1] = 2.0, -2.0, 2.0
  path = tmp_path / "classes.npz"
  np.savez(path, embeddings=rows, class_names=np.array(_CLASSES), scale=np.float32(100))
  return path


def _variables(model):
  images = jnp.zeros((1, model.image_size, model.image_size, 3))
  return backbone.initialise(model, jax.random.key(0), images)


def test_the_head_gives_scaled_cosines_in_the_order_asked_for(file):
  model = _vit(num_classes=2)
  head = zero_shot.set_head(
    model, _variables(model), zero_shot.read_class_embeddings(file), ("ab", "dog")
  )
  features = model.apply(head, jnp.ones((2, 16, 16, 3)), stop="head")
  np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
  logits = model.apply(head, jnp.ones((2, 16, 16, 3)))
  expected = 100 * np.stack([features[:, 1], -features[:, 0]], axis=1)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_does_not_normalise_is_refused(file):
  model = _vit(normalize_features=False)
  embeddings = zero_shot.read_class_embeddings(file)
  with pytest.raises(ValueError, match="create it with normalize_features=True"):
    zero_shot.set_head(model, _variables(model), embeddings, _CLASSES)


def test_classes_and_sizes_that_do_not_fit_are_errors(file):
  embeddings = zero_shot.read_class_embeddings(file)
  model = _vit()
  variables = _variables(model)
  with pytest.raises(ValueError, match=r"no embedding for 1 of 3 classes: \['cow'\]"):
    zero_shot.set_head(model, variables, embeddings, ("cat", "cow", "dog"))
  with pytest.raises(ValueError, match="2 class names for a head of 3 classes"):
    zero_shot.set_head(model, variables, embeddings, ("cat", "dog"))
  other = _vit(projection=10)
  with pytest.raises(ValueError, match="12 features, the model 10"):
    zero_shot.set_head(other, _variables(other), embeddings, _CLASSES)


@pytest.mark.parametrize(
  "change",
  [
    {"embeddings": np.zeros((3, 12), np.float32)},
    {"embeddings": np.full((3, 12), np.nan, np.float32)},
    {"embeddings": np.ones((2, 12), np.float32)},
    {"embeddings": np.ones((3, 12), np.int32)},
    {"scale": np.float32(-1)},
    {"scale": None},
    {"class_names": np.array([{}, {}, {}], object)},
  ],
)
def test_a_file_that_holds_something_else_is_an_error(file, change):
  arrays = dict(np.load(file)) | change
  np.savez(file, **{k: v for k, v in arrays.items() if v is not None})
  with pytest.raises(weights.WeightsError, match=str(file)):
    zero_shot.read_class_embeddings(file)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not a zip"])
def test_a_file_that_is_none_is_an_error_with_the_script(tmp_path, content):
  path = tmp_path / "none.npz"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(weights.WeightsError, match=r"make one with scripts/class_embeddings\.py"):
    zero_shot.read_class_embeddings(path)


@pytest.mark.slow
def test_the_script_and_the_head_give_transformers_logits(tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + ["."]
  tokens = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
  (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
  (tmp_path / "merges.txt").write_text("#version: 0.2\n")
  tokenizer = transformers.CLIPTokenizer(
    str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=64
  )
  common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
  config = transformers.CLIPConfig(
    text_config={
      **common, "num_hidden_layers": 12, "vocab_size": len(tokens),
      "intermediate_size": 64, "max_position_embeddings": 64,
      "bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "projection_dim": 12,
    },
    vision_config={
      **common, "intermediate_size": 64, "image_size": 16, "patch_size": 8, "projection_dim": 12
    },
    projection_dim=12,
  )  # fmt: skip
  clip = transformers.CLIPModel(config).eval()
  folder = tmp_path / "clip"
  clip.save_pretrained(folder)
  tokenizer.save_pretrained(folder)
  (tmp_path / "classes.txt").write_text("\n".join(_CLASSES))
  out = tmp_path / "embeddings.npz"
  command = [sys.executable, _ROOT / "scripts/class_embeddings.py", f"--model={folder}",
             f"--classes={tmp_path / 'classes.txt'}", f"--out={out}"]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr

  model = _vit()
  loaded = weights.load_pretrained(folder / "model.safetensors", model, preprocessing="clip")
  assert loaded.not_loaded == ("head/kernel", "head/bias")
  head = zero_shot.set_head(model, loaded.variables, zero_shot.read_class_embeddings(out), _CLASSES)
  images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
  texts = tokenizer([f"a photo of a {c}." for c in _CLASSES], padding=True, return_tensors="pt")
  with torch.no_grad():
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    expected = clip(pixel_values=pixels, **texts).logits_per_image.numpy()
  np.testing.assert_allclose(model.apply(head, images), expected, rtol=1e-4, atol=1e-4)


def test_clips_resnet_takes_such_a_head_too(tmp_path):
  model = models.create("clip_resnet50", 2, image_size=32, normalize_features=True)
  path = tmp_path / "classes.npz"
  rows = np.random.default_rng(0).normal(size=(2, 1024))
  np.savez(path, embeddings=rows, class_names=np.array(["a", "b"]), scale=10.0)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  head = zero_shot.set_head(model, shapes, zero_shot.read_class_embeddings(path), ("b", "a"))
  kernel = np.asarray(head["params"]["head"]["kernel"])
  np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 10, rtol=1e-5)
  np.testing.assert_allclose(kernel[:, 1] / 10, rows[0] / np.linalg.norm(rows[0]), rtol=1e-4)
