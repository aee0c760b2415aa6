"""Colour jitter against Pillow and colorsys, and mixup."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageEnhance
import pytest

from subtune_jax.data import augment, jitter


def _images(n: int = 4) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (n, 9, 7, 3)).astype(np.uint8)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color"])
def test_each_change_is_pillows(name, factor):
  image = _images(1)[0]
  values = jnp.asarray(image, jnp.float32)
  other = {
    "Brightness": jnp.zeros_like(values),
    "Contrast": jnp.full_like(values, jnp.round(jnp.mean(jitter.grey(values)))),
    "Color": jnp.broadcast_to(jnp.round(jitter.grey(values)), values.shape),
  }[name]
  expected = np.asarray(getattr(ImageEnhance, name)(Image.fromarray(image)).enhance(factor))
  got = np.asarray(jitter.blend(values, other, factor))
  assert np.abs(got - expected).max() <= 1.01  # Pillow cuts decimals off


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.25])
def test_the_hue_turns_as_in_colorsys(turn):
  image = _images(1)[0].astype(np.float32)
  got = np.asarray(jitter.turn_hue(jnp.asarray(image), turn))
  for pixel, new in zip(image.reshape(-1, 3) / 255, got.reshape(-1, 3) / 255, strict=True):
    h, s, v = colorsys.rgb_to_hsv(*map(float, pixel))
    np.testing.assert_allclose(new, colorsys.hsv_to_rgb((h + turn) % 1, s, v), atol=1e-5)


def test_factors_stay_in_their_ranges_and_images_have_their_own():
  grey = np.full((200, 2, 2, 3), 100, np.uint8)
  keys = augment.view_keys(0, np.arange(200), 0, 1)
  got = np.asarray(jitter.color_jitter(grey, keys, brightness=0.3)).mean(axis=(1, 2, 3))
  assert got.min() >= 70
  assert got.max() <= 130
  assert got.min() < 75
  assert got.max() > 125
  assert len(np.unique(got)) > 30


def test_nothing_changes_without_strength():
  images = _images()
  keys = augment.view_keys(0, np.arange(4), 0, 1)
  np.testing.assert_array_equal(jitter.color_jitter(images, keys), images)


@pytest.mark.parametrize("strength", [{"hue": 0.6}, {"contrast": -0.1}, {"brightness": np.nan}])
def test_a_strength_out_of_range_is_an_error(strength):
  with pytest.raises(ValueError, match=f"{next(iter(strength))}=.* is out of range"):
    jitter.color_jitter(_images(), augment.view_keys(0, np.arange(4), 0, 1), **strength)


def test_mixup_mixes_each_row_with_its_partner():
  x = jnp.arange(12.0).reshape(6, 2)
  mixed, partner, share = jitter.mixup(x, jax.random.key(3), 0.4)
  assert sorted(partner.tolist()) == list(range(6))
  assert 0 < float(share) < 1
  np.testing.assert_allclose(mixed, share * x + (1 - share) * x[partner], rtol=1e-6)
