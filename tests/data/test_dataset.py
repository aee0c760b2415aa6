"""Dataset: what it refuses, subsets and fingerprints."""

import dataclasses

import numpy as np
import pytest

from subtune_jax.data import dataset, lazy


def make(**changes):
  fields = {
    "images": np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3),
    "labels": np.array([0, 1, 2, 1], np.int32),
    "groups": np.array(["g0", "g1", "g1", "g2"]),
    "ids": np.array(["a", "b", "c", "d"]),
    "class_names": ("cat", "dog", "owl"),
    "name": "made/up",
    "split": "train",
  }
  return dataset.Dataset(**(fields | changes))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"images": np.zeros((4, 2, 2, 3), np.float32)}, "must be a uint8 array.*float32"),
    ({"images": [[[[0, 0, 0]]]] * 4}, "must be a uint8 array.*a list"),
    ({"images": np.zeros((4, 2, 2), np.uint8)}, r"\[n, height, width, 3\].*\(4, 2, 2\)"),
    ({"images": np.zeros((4, 2, 2, 1), np.uint8)}, r"\(4, 2, 2, 1\)"),
    ({"images": np.zeros((0, 2, 2, 3), np.uint8)}, "at least one image"),
    ({"labels": np.zeros(4, np.int64)}, "labels must be a NumPy array of int32, got.*int64"),
    ({"labels": np.zeros(3, np.int32)}, r"labels must have one value per image.*\(3,\)"),
    ({"labels": np.zeros((4, 1), np.int32)}, r"shape \(4,\), got \(4, 1\)"),
    ({"labels": np.array([0, 1, 3, 1], np.int32)}, r"label 3 of 'c' \(index 2\).*0 to 2"),
    ({"labels": np.array([0, -1, 2, 1], np.int32)}, "label -1 of 'b'"),
    ({"groups": np.arange(4)}, "groups must be a NumPy array of str"),
    ({"groups": np.array(["g0"])}, "groups must have one value per image"),
    ({"ids": ["a", "b", "c", "d"]}, "ids must be a NumPy array of str.*a list"),
    ({"ids": np.array(["a", "b", "c", None], object)}, "ids must be a NumPy array.*object"),
    ({"class_names": ["cat", "dog", "owl"]}, "class_names must be a tuple of str"),
    ({"class_names": ("cat", "dog", "cat")}, r"repeated: \['cat'\]"),
  ],
)
def test_refuses_fields_that_do_not_fit(changes, message):
  with pytest.raises(ValueError, match=message):
    make(**changes)


def test_error_names_the_data_set_and_split():
  with pytest.raises(ValueError, match="'made/up', split 'train'"):
    make(labels=np.full(4, 9, np.int32))


def test_length():
  assert len(make()) == 4


def test_is_read_only_and_leaves_the_callers_array_alone():
  images = np.zeros((4, 2, 2, 3), np.uint8)
  data = make(images=images)
  with pytest.raises(ValueError, match="read-only"):
    data.images[0] = 1
  with pytest.raises(dataclasses.FrozenInstanceError):
    data.split = "test"
  assert images.flags.writeable


def test_subset_takes_every_field_in_the_order_asked_for():
  data = make()
  part = data.subset([3, 0, 3])
  np.testing.assert_array_equal(part.images, data.images[[3, 0, 3]])
  assert part.labels.tolist() == [1, 0, 1]
  assert part.groups.tolist() == ["g2", "g0", "g2"]
  assert part.ids.tolist() == ["d", "a", "d"]
  assert (part.class_names, part.name, part.split) == (data.class_names, "made/up", "train")


@pytest.mark.parametrize(
  ("indices", "message"),
  [
    ([0, 4], "index 4 is out of range; allowed: 0 to 3"),
    ([-1], "index -1 is out of range"),
    ([], "at least one integer"),
    ([0.0, 1.0], "float64"),
    ([True, False, True, True], "np.flatnonzero"),
    ([[0, 1]], r"shape \(1, 2\)"),
  ],
)
def test_subset_refuses(indices, message):
  with pytest.raises(ValueError, match=message):
    make().subset(indices)


def test_fingerprint_is_of_the_content():
  data = make()
  assert data.fingerprint() == make(name="other", split="test").fingerprint()
  assert data.fingerprint() == make(ids=data.ids.astype("<U20")).fingerprint()
  strided = make(images=np.asfortranarray(data.images), labels=np.repeat(data.labels, 2)[::2])
  assert data.fingerprint() == strided.fingerprint()
  assert data.fingerprint() == data.subset([0, 1, 2, 3]).fingerprint()


def test_fingerprint_changes_with_every_part_of_the_content():
  base = make()
  images = np.array(base.images)
  images[3, 1, 1, 2] ^= 1
  changed = [
    base,
    make(images=images),
    make(images=base.images.reshape(4, 1, 4, 3)),
    make(labels=np.array([0, 1, 2, 2], np.int32)),
    make(groups=np.array(["g0", "g1", "g1", "g1"])),
    make(ids=np.array(["a", "b", "cd", ""])),
    make(ids=np.array(["a", "b", "c", "e"])),
    make(class_names=("cat", "dog", "emu")),
    base.subset([0, 1, 3, 2]),
    base.subset([0, 1, 2]),
  ]
  assert len({data.fingerprint() for data in changed}) == len(changed)


def test_fingerprint_is_the_same_everywhere():
  # A change here forgets every cache and refuses every resume: make it on purpose only.
  expected = "45aea542d0c5ab29eb6033b6ca54b8e2fe1e149d92fd2cd20cc0c200d40014ce"
  assert make().fingerprint() == expected


def make_lazy(stamps=(1, 2, 3, 4), **changes):
  pixels = make().images
  sources = list(zip(range(4), stamps, strict=True))
  images = lazy.LazyImages(sources, lambda s: pixels[s[0]], 2, lambda s: s[1])
  return make(images=images, **changes)


def test_lazy_images_stay_lazy_in_subsets():
  data, whole = make_lazy(), make()
  part = data.subset([3, 0, 3])
  assert isinstance(part.images, lazy.LazyImages)
  np.testing.assert_array_equal(part.images[:], whole.images[[3, 0, 3]])
  assert part.labels.tolist() == whole.labels[[3, 0, 3]].tolist()
  with pytest.raises(ValueError, match="index 4 is out of range"):
    data.subset([4])


def test_lazy_fingerprint_covers_the_stamps_and_the_columns():
  base = make_lazy()
  assert base.fingerprint() == make_lazy(name="other", split="test").fingerprint()
  assert base.fingerprint() == base.subset(range(4)).fingerprint()
  changed = [
    base,
    make_lazy(stamps=(1, 2, 3, 5)),
    make_lazy(labels=np.array([0, 1, 2, 2], np.int32)),
    make_lazy(ids=np.array(["a", "b", "c", "e"])),
    base.subset([0, 1, 3, 2]),
    make(),
  ]
  assert len({data.fingerprint() for data in changed}) == len(changed)


def test_lazy_images_of_another_number_are_refused():
  with pytest.raises(ValueError, match=r"labels must have one value per image.*\(3,\), got \(4,\)"):
    make(images=make_lazy().images.take([0, 1, 2]))


def test_a_memory_mapped_array_is_an_array(tmp_path):
  np.save(tmp_path / "images.npy", make().images)
  data = make(images=np.load(tmp_path / "images.npy", mmap_mode="r"))
  assert data.fingerprint() == make().fingerprint()
  assert data.subset([1]).images.tolist() == make().subset([1]).images.tolist()


def test_concatenate():
  both = dataset.concatenate([make(), make(split="validation").subset([2, 0])], "trainval")
  assert both.ids.tolist() == ["a", "b", "c", "d", "c", "a"]
  assert both.labels.tolist() == [0, 1, 2, 1, 2, 0]
  assert both.split == "trainval"
  np.testing.assert_array_equal(both.images[4:], make().images[[2, 0]])
  with pytest.raises(ValueError, match="names or classes differ"):
    dataset.concatenate([make(), make(class_names=("cat", "dog", "emu"))], "trainval")
