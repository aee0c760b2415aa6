"""Common corruptions: parameters typed here, results by hand where there are any, determinism."""

import numpy as np
import pytest

from subtune_jax.data import corruptions

NAMES = (
  "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
  "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
  "jpeg_compression",
)  # fmt: skip


def _photo(size=32, seed=0):
  """Smooth blobs with an edge: something that blur, noise and warps all change."""
  y, x = np.mgrid[:size, :size] / size
  image = np.stack([0.5 + 0.4 * np.sin(7 * x + c) * np.cos(5 * y - c) for c in range(3)], -1)
  image[size // 4 : size // 2, size // 3 : size // 2] = 0.1
  return (image * 255).astype(np.uint8)


def _change(name, severity, table="cifar10_c", size=32, **options):
  image = _photo(size)
  result = corruptions.corrupt(image, name, severity, table=table, **options)
  return np.abs(result.astype(int) - image).mean()


def test_there_are_15():
  assert corruptions.NAMES == NAMES
  for table in corruptions.TABLES.values():
    assert tuple(table) == NAMES
    assert all(len(row) == 5 for row in table.values())


def test_parameters():
  imagenet, cifar = corruptions.TABLES["imagenet_c"], corruptions.TABLES["cifar10_c"]
  assert imagenet["gaussian_noise"] == (0.08, 0.12, 0.18, 0.26, 0.38)
  assert cifar["gaussian_noise"] == (0.04, 0.06, 0.08, 0.09, 0.10)
  assert imagenet["jpeg_compression"] == (25, 18, 15, 10, 7)
  assert cifar["jpeg_compression"] == (80, 65, 58, 50, 40)
  assert imagenet["glass_blur"][4] == (1.5, 4, 2)
  assert cifar["glass_blur"][4] == (0.4, 1, 2)
  assert imagenet["fog"] == ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))
  assert imagenet["elastic_transform"][0] == pytest.approx((244 * 2, 244 * 0.7, 244 * 0.1))
  assert imagenet["elastic_transform"][4] == pytest.approx((244 * 0.12, 244 * 0.01, 244 * 0.02))
  assert cifar["elastic_transform"][1] == pytest.approx((32 * 0.05, 32 * 0.2, 32 * 0.07))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("table", ["cifar10_c", "imagenet_c"])
def test_is_a_function_of_seed_and_index(name, table):
  image = _photo(48)
  before = image.copy()

  def run(**options):
    return corruptions.corrupt(image, name, 3, table=table, **options)

  result = run(seed=1, index=2)
  assert result.dtype == np.uint8
  assert result.shape == image.shape
  np.testing.assert_array_equal(image, before)
  np.random.seed(0)  # noqa: NPY002
  np.testing.assert_array_equal(result, run(seed=1, index=2))
  assert (result != image).any()
  is_random = name not in (
    "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression",
  )  # fmt: skip
  assert (run(seed=2, index=2) != result).any() == is_random
  assert (run(seed=1, index=3) != result).any() == is_random


def test_the_draws_are_the_same_on_every_machine():
  image = np.full((16, 16, 3), 128, np.uint8)
  noisy = corruptions.corrupt(image, "gaussian_noise", 5, table="imagenet_c", seed=3, index=7)
  assert noisy[0, :4, 0].tolist() == [113, 120, 51, 152]


@pytest.mark.parametrize(
  "name", [n for n in NAMES if n not in ("glass_blur", "elastic_transform", "frost", "snow")]
)
def test_a_higher_severity_changes_more(name):
  changes = [_change(name, severity) for severity in (1, 3, 5)]
  assert changes[0] < changes[1] < changes[2]


def test_noise_has_the_stated_size():
  grey = np.full((128, 128, 3), 128, np.uint8)

  def run(name, severity):
    return corruptions.corrupt(grey, name, severity, table="imagenet_c").astype(float)

  assert run("gaussian_noise", 1).std() / 255 == pytest.approx(0.08, rel=0.03)
  # Poisson: variance is brightness / photons.
  assert run("shot_noise", 1).std() / 255 == pytest.approx((128 / 255 / 60) ** 0.5, rel=0.03)
  noise = run("impulse_noise", 5)
  assert (noise != 128).mean() == pytest.approx(0.27, abs=0.01)
  assert (noise == 255).sum() / (noise != 128).sum() == pytest.approx(0.5, abs=0.02)
  assert set(np.unique(noise)) == {0, 128, 255}


def test_brightness_by_hand():
  image = np.zeros((16, 16, 3), np.uint8)
  image[:8] = (100, 50, 0)
  result = corruptions.corrupt(image, "brightness", 2, table="imagenet_c")
  # Value 100 + 0.2 * 255 = 151: every channel grows by 1.51; black becomes grey 51.
  assert result[0, 0].tolist() in ([151, 75, 0], [150, 75, 0])
  assert result[15, 0].tolist() == [51, 51, 51]


def test_contrast_by_hand():
  image = np.zeros((16, 16, 3), np.uint8)
  image[:8] = 200
  result = corruptions.corrupt(image, "contrast", 4, table="imagenet_c")  # a tenth
  assert result[0, 0, 0] in (109, 110)
  assert result[15, 0, 0] in (89, 90)


def test_pixelate_by_hand():
  image = (np.arange(16, dtype=np.uint8) * 10)[None, :, None].repeat(16, 0).repeat(3, 2)
  result = corruptions.corrupt(image, "pixelate", 2, table="imagenet_c")  # half the pixels
  assert result[0, :4, 0].tolist() == [5, 5, 25, 25]


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "zoom_blur", "glass_blur"])
def test_blur_leaves_one_colour_as_it_is(name):
  image = np.full((32, 32, 3), (10, 100, 200), np.uint8)
  result = corruptions.corrupt(image, name, 5, table="imagenet_c")
  assert np.abs(result.astype(int) - image).max() <= 2  # glass blur cuts off twice


def test_the_disk_is_round():
  for radius, sigma in (*corruptions.TABLES["imagenet_c"]["defocus_blur"], (0.3, 0.4)):
    disk = corruptions._disk(radius, sigma)
    # As published: above 1 where the disk touches the edge of its kernel, radius 8 and 10.
    assert disk.sum() == pytest.approx(1, abs=0.02 if radius >= 8 else 1e-6)
    np.testing.assert_allclose(disk, disk.T)
    np.testing.assert_allclose(disk, disk[::-1, ::-1])


def test_motion_runs_along_the_angle():
  image = np.zeros((31, 31))
  image[15, 15] = 1
  flat = corruptions._smear(image, 5, 100, 0)  # To the left of the point, which lies ahead.
  assert np.flatnonzero(flat.sum(axis=0)).tolist() == list(range(5, 16))
  assert np.flatnonzero(flat.sum(axis=1)).tolist() == [15]
  steep = corruptions._smear(image, 5, 100, -90)
  assert np.flatnonzero(steep.sum(axis=1)).tolist() == list(range(15, 26))
  assert flat.sum() == pytest.approx(1)


def test_fog_is_smoother_with_a_larger_decay():
  def roughness(decay):
    plasma = corruptions._plasma(32, decay, np.random.RandomState(0))
    assert (plasma.min(), plasma.max(), plasma.shape) == (0, 1, (32, 32))
    return np.abs(np.diff(plasma, axis=0)).mean()

  assert roughness(3) < roughness(1.75)


def test_frost_takes_the_photographs_of_the_user():
  image = np.full((16, 16, 3), 100, np.uint8)
  texture = np.full((20, 30, 3), 60, np.uint8)
  result = corruptions.corrupt(image, "frost", 1, table="imagenet_c", textures=[texture])
  assert np.unique(result).tolist() == [124]  # 1 * 100 + 0.4 * 60
  with pytest.raises(ValueError, match="smaller than the image"):
    corruptions.corrupt(image, "frost", 1, table="imagenet_c", textures=[texture[:4]])


def test_images_need_not_be_square():
  image = _photo(64)[:40]
  for name in NAMES:
    assert corruptions.corrupt(image, name, 4, table="imagenet_c").shape == (40, 64, 3)


@pytest.mark.parametrize(
  ("image", "name", "severity", "table", "match"),
  [
    (_photo(), "blur", 1, "cifar10_c", "Unknown corruption 'blur'"),
    (_photo(), "fog", 6, "cifar10_c", "severity=6"),
    (_photo(), "fog", 1, "cifar", "Unknown table 'cifar'"),
    (_photo()[:, :, 0], "fog", 1, "cifar10_c", "must be uint8"),
    (_photo() / 255, "fog", 1, "cifar10_c", "float64"),
    (_photo(8), "fog", 1, "cifar10_c", "16 pixels or more"),
  ],
)
def test_wrong_arguments(image, name, severity, table, match):
  with pytest.raises(ValueError, match=match):
    corruptions.corrupt(image, name, severity, table=table)
