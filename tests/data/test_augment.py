"""Random views: functions of (seed, image, epoch) alone, and the right pixels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from scipy import ndimage
from sklearn import datasets

from subtune_jax import data
from subtune_jax.data import augment
from subtune_jax.training import step


def random_images(n=6, height=8, width=8, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def shift_and_flip(images, keys):
  return augment.shift_and_flip(images, keys, 3)


VIEWS = {
  "shift_and_flip": jax.jit(shift_and_flip),
  "random_resized_crop": jax.jit(augment.random_resized_crop),
}
resize_box = jax.jit(augment._resize_box)


def key_data(keys):
  return np.asarray(jax.random.key_data(keys))


def test_keys_repeat_after_num_views_and_differ_before():
  indices = np.arange(5)
  keys = [key_data(augment.view_keys(0, indices, epoch, num_views=3)) for epoch in range(6)]
  for epoch in range(3):
    np.testing.assert_array_equal(keys[epoch], keys[epoch + 3])
  distinct = {row.tobytes() for epoch in range(3) for row in keys[epoch]}
  assert len(distinct) == 15
  other_seed = key_data(augment.view_keys(1, indices, 0, num_views=3))
  assert not distinct & {row.tobytes() for row in other_seed}


def test_key_depends_on_the_index_and_not_on_its_place():
  keys = key_data(augment.view_keys(7, [4, 9, 2], 1, 8))
  alone = key_data(augment.view_keys(7, [9], 1, 8))
  np.testing.assert_array_equal(keys[1], alone[0])


def test_keys_under_jit_with_a_traced_epoch():
  jitted = jax.jit(lambda indices, epoch: augment.view_keys(7, indices, epoch, 4))
  np.testing.assert_array_equal(
    key_data(jitted(jnp.arange(3), 6)), key_data(augment.view_keys(7, [0, 1, 2], 2, 4))
  )


def test_keys_refuse_no_views():
  with pytest.raises(ValueError, match="num_views must be at least 1, got 0"):
    augment.view_keys(0, [0], 0, 0)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_view_is_deterministic_and_changes_with_the_epoch(view):
  images = random_images()
  views = [np.asarray(view(images, augment.view_keys(0, np.arange(6), e, 4))) for e in (0, 1, 4)]
  assert views[0].dtype == np.uint8
  assert views[0].shape == images.shape
  np.testing.assert_array_equal(views[0], views[2])
  assert (views[0] != views[1]).any(axis=(1, 2, 3)).sum() >= 5


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_batch_composition_does_not_change_a_view(view):
  images = random_images()
  whole = np.asarray(view(images, augment.view_keys(0, np.arange(6), 1, 4)))
  for batch in ([3], [5, 0, 0, 4]):
    part = np.asarray(view(images[batch], augment.view_keys(0, batch, 1, 4)))
    np.testing.assert_array_equal(part, whole[batch])


def test_jit_gives_the_same_view():
  images, keys = random_images(), augment.view_keys(0, np.arange(6), 0, 4)
  jitted = VIEWS["shift_and_flip"](images, keys)
  np.testing.assert_array_equal(jitted, shift_and_flip(images, keys))


def test_no_pad_and_no_flip_is_the_identity():
  images, keys = random_images(), augment.view_keys(0, np.arange(6), 0, 4)
  np.testing.assert_array_equal(augment.shift_and_flip(images, keys, 0, flip=False), images)


def test_flip_mirrors_about_half_of_the_images():
  images = random_images(n=200, height=2, width=3)
  views = augment.shift_and_flip(images, augment.view_keys(0, np.arange(200), 0, 1), 0)
  flipped = (np.asarray(views) == images[:, :, ::-1]).all(axis=(1, 2, 3))
  same = (np.asarray(views) == images).all(axis=(1, 2, 3))
  assert (flipped ^ same).all()
  assert 70 <= flipped.sum() <= 130  # 100 expected, standard deviation 7


def shifted_by_hand(image, top, left, padding):
  """The window at (top, left) of the image padded by 1."""
  padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode=padding)
  return padded[top : top + image.shape[0], left : left + image.shape[1]]


@pytest.mark.parametrize("padding", ["edge", "reflect"])
def test_shifts_are_the_nine_windows_by_hand(padding):
  image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1) * np.array([1, 10, 20], np.uint8)
  corners = [(top, left) for top in range(3) for left in range(3)]
  windows = [shifted_by_hand(image, top, left, padding) for top, left in corners]
  images = np.repeat(image[None], 180, axis=0)
  keys = augment.view_keys(0, np.arange(180), 0, 1)
  views = np.asarray(augment.shift_and_flip(images, keys, 1, flip=False, padding=padding))
  counts = np.array([(views == window).all(axis=(1, 2, 3)).sum() for window in windows])
  assert counts.sum() == 180  # Nothing but the nine windows,
  assert counts.min() >= 6  # each of them about 20 times.


def test_edge_padding_by_hand():
  image = np.array([[1, 2], [3, 4]], np.uint8)
  assert shifted_by_hand(image[..., None], 0, 0, "edge")[..., 0].tolist() == [[1, 1], [1, 1]]
  assert shifted_by_hand(image[..., None], 2, 1, "edge")[..., 0].tolist() == [[3, 4], [3, 4]]
  assert shifted_by_hand(image[..., None], 0, 1, "reflect")[..., 0].tolist() == [[3, 4], [1, 2]]


def test_whole_image_as_the_box_is_the_identity():
  images, keys = random_images(), augment.view_keys(0, np.arange(6), 0, 4)
  views = augment.random_resized_crop(images, keys, scale=(1, 1), ratio=(1, 1), flip=False)
  np.testing.assert_array_equal(views, images)


def test_box_resized_by_hand():
  # Rows 0, 101, 200, 240; the box of rows 1 and 2 at twice the size samples rows .75, 1.25, 1.75
  # and 2.25 (pixel centres at whole numbers).
  rows = np.array([0, 101, 200, 240], np.float32)
  image = np.broadcast_to(rows[:, None, None], (4, 4, 3)).astype(np.uint8)
  view = resize_box(jnp.asarray(image), jnp.array([1, 0]), jnp.array([2, 4]))
  np.testing.assert_array_equal(view[:, 0, 0], [76, 126, 175, 210])
  np.testing.assert_array_equal(view, np.broadcast_to(view[:, :1, :1], (4, 4, 3)))
  image = image.swapaxes(0, 1)
  view = resize_box(jnp.asarray(image), jnp.array([0, 1]), jnp.array([4, 2]))
  np.testing.assert_array_equal(view[0, :, 0], [76, 126, 175, 210])


def test_rim_of_the_image_is_not_darkened():
  image = jnp.full((5, 5, 3), 200, jnp.uint8)
  for corner in ([0, 0], [2, 2]):
    view = resize_box(image, jnp.array(corner), jnp.array([3, 3]))
    np.testing.assert_array_equal(view, 200)


def test_boxes_have_the_areas_and_ratios_asked_for():
  @jax.jit
  @jax.vmap
  def draw(key):
    return augment._random_box(key, 64, 64, (0.08, 1.0), (3 / 4, 4 / 3))

  corner, size = map(np.asarray, draw(jax.random.split(jax.random.key(0), 2000)))
  assert (corner >= 0).all()
  assert (corner + size <= 64).all()
  assert size.min() >= 15  # sqrt(.08 * 3 / 4) * 64 = 15.7
  ratio = size[:, 1] / size[:, 0]
  assert ratio.min() > 0.70
  assert ratio.max() < 1.43
  assert abs(np.log(ratio).mean()) < 0.02  # Wide and high boxes alike.
  area = size.prod(axis=1) / 64**2
  assert area.min() < 0.1
  assert area.max() > 0.9
  # Uniform below 3 / 4: up to there every box fits.
  below = [(area < part).mean() for part in (0.25, 0.42, 0.59)]
  np.testing.assert_allclose(np.diff(below), below[1] - below[0], atol=0.04)


@pytest.mark.parametrize(
  ("height", "width", "expected"), [(64, 64, (64, 64)), (10, 40, (10, 13)), (40, 9, (12, 9))]
)
def test_largest_box(height, width, expected):
  assert augment._largest_box(height, width, (3 / 4, 4 / 3)) == expected


def test_box_that_never_fits_is_the_centred_one():
  # The whole area at ratio 1 cannot lie inside 10 x 40.
  corner, size = augment._random_box(jax.random.key(0), 10, 40, (1.0, 1.0), (1.0, 1.0))
  assert (size.tolist(), corner.tolist()) == ([10, 10], [0, 15])


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize(
  ("images", "num_keys", "message"),
  [
    (np.zeros((2, 4, 4, 3), np.float32), 2, "takes uint8 images .* got float32"),
    (np.zeros((4, 4, 3), np.uint8), 4, r"got uint8 \(4, 4, 3\)"),
    (np.zeros((2, 4, 4, 3), np.uint8), 3, r"one typed key per image, shape \(2,\)"),
  ],
)
def test_refuses_images_and_keys_that_do_not_fit(view, images, num_keys, message):
  with pytest.raises(ValueError, match=message):
    view(images, jax.random.split(jax.random.key(0), num_keys))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"pad": -1}, "pad=-1 is out of range"),
    ({"pad": 8, "padding": "reflect"}, 'pad=8 is out of range .* 0 to 7 with "reflect"'),
    ({"pad": 1, "padding": "wrap"}, "Unknown padding 'wrap'. Allowed: 'edge', 'reflect'"),
  ],
)
def test_shift_and_flip_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    augment.shift_and_flip(random_images(), augment.view_keys(0, np.arange(6), 0, 1), **options)


@pytest.mark.parametrize(
  "options",
  [{"scale": (0.0, 1.0)}, {"scale": (0.5, 0.2)}, {"scale": (0.5, 1.5)}, {"ratio": (0, 1)}],
)
def test_random_resized_crop_refuses(options):
  with pytest.raises(ValueError, match="must be \\(smallest, largest\\)"):
    augment.random_resized_crop(
      random_images(), augment.view_keys(0, np.arange(6), 0, 1), **options
    )


def real_images():
  """Emoji at 64 px, photographs at odd sizes."""
  photographs = datasets.load_sample_images().images
  shrunk = [np.array(Image.fromarray(p).resize((83, 60))) for p in photographs]
  return [*data.load("emoji_domains/noto", "test", 64).images[:3], *shrunk]


@pytest.mark.parametrize("degrees", [-137.0, -20.0, 0.0, 7.5, 45.0, 90.0])
def test_a_rotation_is_scipys_and_inside_the_image_pillows(degrees):
  """To one level of 255, which is the rounding."""
  turned = jax.jit(augment.rotated)
  for image in real_images():
    found = np.asarray(turned(image, np.deg2rad(degrees))).astype(int)
    wanted = ndimage.rotate(
      image.astype(float), degrees, reshape=False, order=1, mode="nearest", prefilter=False
    )
    assert np.abs(found - wanted).max() <= 1, image.shape
    drawn = np.array(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR)).astype(int)
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width] - np.array([height - 1, width - 1])[:, None, None] / 2
    inside = np.hypot(y, x) < min(height, width) / 2 - 2
    assert np.abs(found - drawn)[inside].max() <= 1
    if degrees in (-20.0, 45.0):
      assert np.abs(found - image).max() > 50


def test_angles_are_uniform_and_within_bounds():
  ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 2, 64, axis=0)
  images = np.repeat(np.repeat(ramp, 3, axis=2)[None], 300, axis=0)
  keys = augment.view_keys(0, np.arange(300), 0, 1)
  views = np.asarray(augment.rotate(images, keys, 30.0)).astype(float)
  middle = views[:, 22:42, 22:42, 0]  # of a plane, whose slopes are those of the angle
  down, right = (np.diff(middle, axis=a).mean(axis=(1, 2)) for a in (1, 2))
  angles = np.rad2deg(np.arctan2(down, right))
  assert np.abs(angles).max() <= 31
  assert [np.sum(angles < edge) for edge in (-15, 0, 15)] == pytest.approx([75, 150, 225], abs=30)


def test_vertical_flips_and_quarter_turns_are_the_exact_images():
  images = random_images(n=200, height=5, width=5)
  keys = augment.view_keys(0, np.arange(200), 0, 1)
  flipped = (np.asarray(augment.flip_vertical(images, keys)) == images[:, ::-1]).all(axis=(1, 2, 3))
  same = (np.asarray(augment.flip_vertical(images, keys)) == images).all(axis=(1, 2, 3))
  assert (flipped ^ same).all()
  assert 70 <= flipped.sum() <= 130
  turned = np.asarray(augment.quarter_turns(images, keys))
  counts = [
    (turned == np.rot90(images, k, axes=(1, 2))).all(axis=(1, 2, 3)).sum() for k in range(4)
  ]
  assert sum(counts) == 200
  assert min(counts) >= 30  # 50 expected, standard deviation 6


def test_rotations_and_turns_refuse():
  keys = augment.view_keys(0, np.arange(6), 0, 1)
  with pytest.raises(ValueError, match="rotate=181 is out of range; give degrees from 0 to 180"):
    augment.rotate(random_images(), keys, 181)
  with pytest.raises(ValueError, match="Only square images have quarter turns"):
    augment.quarter_turns(random_images(height=4), keys)
  with pytest.raises(ValueError, match=r"rotate is -1\.0; give degrees from 0"):
    step.Augmentation(rotate=-1.0)


def test_views_with_rotation_are_functions_of_seed_image_and_epoch():
  made = step.Augmentation("shift", 2, rotate=20.0, flip_vertical=True, quarter_turns=True)
  images = random_images(n=8, height=12, width=12)
  views = jax.jit(made.views)
  first = np.asarray(views(images, 3, np.arange(8), 1))
  part = np.asarray(views(images[[5, 2]], 3, np.array([5, 2]), 1))
  np.testing.assert_array_equal(part, first[[5, 2]])
  assert (np.asarray(views(images, 3, np.arange(8), 2)) != first).any(axis=(1, 2, 3)).all()
  assert (np.asarray(views(images, 4, np.arange(8), 1)) != first).any(axis=(1, 2, 3)).all()
  for off in ({"rotate": 0.0}, {"flip_vertical": False}, {"quarter_turns": False}):
    other = dataclasses.replace(made, **off)
    assert (np.asarray(jax.jit(other.views)(images, 3, np.arange(8), 1)) != first).any()
