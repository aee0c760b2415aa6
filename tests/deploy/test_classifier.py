"""Answers for images: the same from paths, Pillow images and arrays; what is refused."""

import numpy as np
from PIL import Image
import pytest
import scipy.special

import subtune_jax
from subtune_jax.data import errors, preprocess
from subtune_jax.deploy import folder
from subtune_jax.training import evaluate, mesh
from tests import deploy_network


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """Paths of 11 pictures of the network's size, and their pixels."""
  path = tmp_path_factory.mktemp("pictures")
  images = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), np.uint8)
  paths = [path / f"{number}.png" for number in range(11)]
  for image, file in zip(images, paths, strict=True):
    Image.fromarray(image).save(file)
  return paths, images


def test_all_forms_of_images_have_the_same_answers(trained, pictures):
  paths, images = pictures
  wanted = trained.logits(images)
  np.testing.assert_array_equal(trained.logits(paths), wanted)
  np.testing.assert_array_equal(trained.logits([str(p) for p in paths]), wanted)
  np.testing.assert_array_equal(trained.logits([Image.open(p) for p in paths]), wanted)
  np.testing.assert_array_equal(trained.logits(paths[3]), wanted[3:4])
  np.testing.assert_array_equal(trained.logits(images[3]), wanted[3:4])


def test_the_forward_pass_is_the_models_own(trained, pictures):
  _, images = pictures
  x = preprocess.normalize(images, trained.preprocessing)
  features = trained.model.apply(trained.variables, x, stop="head")
  np.testing.assert_allclose(trained.features(images), features, atol=1e-5)
  logits = trained.logits_of(trained.features(images))
  np.testing.assert_allclose(logits, trained.logits(images), atol=1e-5)
  head = trained.variables["params"]["head"]
  wanted = np.asarray(features) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
  np.testing.assert_allclose(trained.logits(images), wanted, atol=1e-4)


def test_predictions(trained, pictures):
  _, images = pictures
  answers = trained.predict(images)
  np.testing.assert_allclose(
    answers.probabilities, scipy.special.softmax(answers.logits, -1), rtol=1e-5
  )
  names = np.array(deploy_network.CLASSES)
  np.testing.assert_array_equal(answers.labels, names[answers.logits.argmax(-1)])


def test_pictures_of_another_size_are_resized_as_in_training(trained, tmp_path):
  image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8))
  image.save(tmp_path / "a.png")
  wanted = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
  np.testing.assert_array_equal(trained.images(tmp_path / "a.png")[:][0], wanted)
  np.testing.assert_array_equal(trained.images(image)[0], wanted)
  grey = Image.new("RGBA", (20, 20), (0, 0, 0, 0))  # transparent: white
  assert (trained.images(grey) == 255).all()


def test_calibration(trained, pictures, tmp_path):
  _, images = pictures
  raw = trained.predict(images)
  cooler = trained.predict(images, calibrate=True)
  np.testing.assert_allclose(cooler.logits, raw.logits / 2, rtol=1e-6)
  kept = {"calibration": {"gamma": 1.5, "absent": [2]}}
  path = folder.save(tmp_path / "m", deploy_network.NETWORK, deploy_network.make(**kept))
  shifted = subtune_jax.load(path).predict(images, calibrate=True).logits
  np.testing.assert_allclose(shifted, raw.logits + np.float32([0, 0, 1.5]), atol=1e-6)
  nothing = deploy_network.make(calibration={"temperature": None, "why": "no validation"})
  with pytest.raises(ValueError, match=r"neither a gamma nor a temperature.*no validation"):
    nothing.predict(images, calibrate=True)


@pytest.mark.parametrize(
  ("images", "said"),
  [
    (np.zeros((2, 16, 16, 3)), r"float64 \[2, 16, 16, 3\]; the network reads uint8"),
    (np.zeros((2, 17, 16, 3), np.uint8), r"uint8 \[2, 17, 16, 3\]"),
    (np.zeros((2, 16, 16), np.uint8), r"uint8 \[1, 2, 16, 16\]"),
    (np.zeros((0, 16, 16, 3), np.uint8), r"uint8 \[0, 16, 16, 3\]"),
    ([], "a list of nothing"),
    (None, "a NoneType; give paths"),
    (3, "a int; give paths"),
    ([1, 2], "a list of int"),
    (["a.png", None], "a list of NoneType, str"),
    ({"a": 1}, "a dict"),
  ],
)
def test_what_is_no_image(trained, images, said):
  with pytest.raises(ValueError, match=said):
    trained.predict(images)


def test_a_broken_picture_is_named(trained, tmp_path):
  (tmp_path / "a.png").write_bytes(b"no picture")
  with pytest.raises(errors.BrokenImageError, match=r"a\.png: not an image"):
    trained.predict([tmp_path / "a.png"])
  with pytest.raises(errors.BrokenImageError, match=r"b\.png"):
    trained.predict(tmp_path / "b.png")


def test_a_row_does_not_depend_on_the_others(trained, pictures):
  _, images = pictures
  options = {"preprocessing": trained.preprocessing, "batch_size": 8, "mesh": mesh.make_mesh()}
  whole = evaluate.predict(trained.model, trained.variables, images, **options)
  np.testing.assert_array_equal(trained.logits(images[::-1]), whole[::-1])
  with pytest.raises(ValueError, match="batch_size is 0"):
    trained.with_batch_size(0)
