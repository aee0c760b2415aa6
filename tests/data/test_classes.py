"""Classes of a second set are matched by name."""

import numpy as np
import pytest

from subtune_jax import data, models
from subtune_jax.data import classes


def make(names, labels, name="theirs"):
  labels = np.asarray(labels, np.int32)
  ids = np.array([str(i) for i in range(len(labels))])
  images = np.zeros((len(labels), 4, 4, 3), np.uint8)
  return data.Dataset(images, labels, ids, ids, names, name, "test")


def match(theirs, ours, label_map=()):
  return classes.by_name(theirs, ours, classes.parse(label_map, ours, [theirs]))


def test_names_not_positions():
  found, notes = match(make(("ok",), [0, 0]), ("defect", "ok"))
  assert found.labels.tolist() == [1, 1]
  assert found.class_names == ("defect", "ok")
  assert not notes


def test_a_map_merges_and_drops_and_says_so():
  theirs = make(("x", "y", "z", "b"), [0, 1, 2, 2, 3])
  found, notes = match(theirs, ("a", "b"), ("x=a", "y=a", "z="))
  assert found.labels.tolist() == [0, 0, 1]
  assert found.ids.tolist() == ["0", "1", "4"]
  assert notes == [
    "theirs: 2 of 5 images are left out, of the classes 'z'",
    "theirs: the classes 'x', 'y' are all counted as 'a'",
  ]
  _, notes = match(make(("b", "x"), [0, 1]), ("a", "b"), ("x=b",))  # "b" stays and "x" joins it
  assert notes == ["theirs: the classes 'b', 'x' are all counted as 'b'"]


def test_a_pair_goes_before_an_equal_name():
  found, _ = match(make(("a", "b"), [0, 1]), ("a", "b"), ("a=b", "b=a"))
  assert found.labels.tolist() == [1, 0]


def test_a_name_may_hold_the_sign():
  found, _ = match(make(("x=1",), [0]), ("a", "b"), ("x=1=b",))
  assert found.labels.tolist() == [1]


@pytest.mark.parametrize(
  ("names", "ours", "label_map", "message"),
  [
    (("hot_dog",), ("cat", "Hot Dog"), (), r"nearest: 'Hot Dog'.*label_map"),
    (("x",), ("cat",), ("x=kat",), r"no class is 'kat'.*nearest: 'cat'"),
    (("blurred",), ("cat",), ("blured=cat",), r"the class 'blured' \(nearest: 'blurred'\).*theirs"),
    (("x",), ("cat",), ("x=cat", "x="), "gives the class 'x' twice"),
    (("x",), ("cat",), ("x",), "'x'; give 'theirs=ours'"),
    (("x",), ("cat",), ("=cat",), "'=cat'; give 'theirs=ours'"),
    (("x",), ("cat",), ("x=",), "no example has a class that the label map keeps"),
  ],
)
def test_refused(names, ours, label_map, message):
  with pytest.raises(ValueError, match=message):
    match(make(names, range(len(names))), ours, label_map)


def test_a_map_without_a_set_is_refused():
  with pytest.raises(ValueError, match=r"data\.ood is empty"):
    classes.parse(("a=b",), ("b",), [])


def test_numbers_as_names_are_matched_as_written_and_said():
  found, notes = match(make(("0", "2"), [0, 1]), ("0", "1", "2"))
  assert found.labels.tolist() == [0, 2]
  assert "called by numbers ('0', '2') and are matched as they are written" in notes[0]
  with pytest.raises(ValueError, match="the class '00'"):
    match(make(("00",), [0]), ("0", "1"))


@pytest.mark.parametrize("names", [(0, 1), None, ["a", "b"]])
def test_names_of_classes_are_given_as_text(names):
  with pytest.raises(ValueError, match="class_names must be a tuple of str"):
    make(names, [0, 1])


def test_numpy_integer_of_classes():
  assert models.create(models.names()[0], np.int32(3)).num_classes == 3
  with pytest.raises(ValueError, match="integer"):
    models.create(models.names()[0], True)
