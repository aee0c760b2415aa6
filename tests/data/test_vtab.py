"""VTAB-1k: the table against values typed here, labels at every edge, the loader on a tiny set."""

import dataclasses

import numpy as np
import pytest

from subtune_jax.data import errors, registry, resize, tfds_source, vtab
from subtune_jax.data.vtab import labels

# name: (group, builder, version, train, validation, test, classes)
EXPECTED = {
  "cifar100": ("natural", "cifar100", "3.0.2", "train[:800]", "train[45000:45200]", "test", 100),
  "caltech101": ("natural", "caltech101", "3.0.2", "train[:800]", "train[2754:2954]", "test", 102),
  "dtd": ("natural", "dtd", "3.0.1", "train[:800]", "validation[:200]", "test", 47),
  "flowers102": (
    "natural", "oxford_flowers102", "2.1.1", "train[:800]", "validation[:200]", "test", 102),
  "pets": ("natural", "oxford_iiit_pet", "4.0.0", "train[:800]", "train[2944:3144]", "test", 37),
  "svhn": ("natural", "svhn_cropped", "3.1.0", "train[:800]", "train[65931:66131]", "test", 10),
  "sun397": ("natural", "sun397/tfds", "4.0.0", "train[:800]", "validation[:200]", "test", 397),
  "patch_camelyon": (
    "specialized", "patch_camelyon", "2.0.0", "train[:800]", "validation[:200]", "test", 2),
  "eurosat": (
    "specialized", "eurosat/rgb", "2.0.0", "train[:800]", "train[16200:16400]", "train[21600:]",
    10),
  "resisc45": (
    "specialized", "resisc45", "3.0.0", "train[:800]", "train[18900:19100]", "train[25200:]", 45),
  "retinopathy": (
    "specialized", "diabetic_retinopathy_detection/btgraham-300", "3.0.0", "train[:800]",
    "validation[:200]", "test", 5),
  "clevr_count": (
    "structured", "clevr", "3.1.0", "train[:800]", "train[63000:63200]", "validation", 8),
  "clevr_distance": (
    "structured", "clevr", "3.1.0", "train[:800]", "train[63000:63200]", "validation", 6),
  "dmlab": ("structured", "dmlab", "2.0.1", "train[:800]", "validation[:200]", "test", 6),
  "kitti_distance": ("structured", "kitti", "3.3.0", "train[:800]", "validation[:200]", "test", 4),
  "dsprites_location": (
    "structured", "dsprites", "2.0.0", "train[:800]", "train[589824:590024]", "train[663552:]",
    16),
  "dsprites_orientation": (
    "structured", "dsprites", "2.0.0", "train[:800]", "train[589824:590024]", "train[663552:]",
    16),
  "smallnorb_azimuth": (
    "structured", "smallnorb", "2.0.0", "train[:800]", "test[:200]", "test[50%:]", 18),
  "smallnorb_elevation": (
    "structured", "smallnorb", "2.0.0", "train[:800]", "test[:200]", "test[50%:]", 9),
}  # fmt: skip

# builder: (images of each split, first and last index of val200, number of test images)
SIZES = {
  "cifar100": ({"train": 50000, "test": 10000}, ("train", 45000, 45200), 10000),
  "caltech101": ({"train": 3057, "test": 6084}, ("train", 2754, 2954), 6084),
  "dtd": ({"train": 1880, "validation": 1880, "test": 1880}, ("validation", 0, 200), 1880),
  "flowers102": ({"train": 1020, "validation": 1020, "test": 6149}, ("validation", 0, 200), 6149),
  "pets": ({"train": 3680, "test": 3669}, ("train", 2944, 3144), 3669),
  "svhn": ({"train": 73257, "test": 26032, "extra": 531131}, ("train", 65931, 66131), 26032),
  "sun397": (
    {"train": 76128, "validation": 10875, "test": 21750}, ("validation", 0, 200), 21750),
  "patch_camelyon": (
    {"train": 262144, "validation": 32768, "test": 32768}, ("validation", 0, 200), 32768),
  "eurosat": ({"train": 27000}, ("train", 16200, 16400), 5400),
  "resisc45": ({"train": 31500}, ("train", 18900, 19100), 6300),
  "retinopathy": (
    {"sample": 10, "train": 35126, "validation": 10906, "test": 42670}, ("validation", 0, 200),
    42670),
  "clevr_count": (
    {"train": 70000, "validation": 15000, "test": 15000}, ("train", 63000, 63200), 15000),
  "dmlab": ({"train": 65550, "validation": 22628, "test": 22735}, ("validation", 0, 200), 22735),
  "kitti_distance": ({"train": 6347, "validation": 423, "test": 711}, ("validation", 0, 200), 711),
  "dsprites_location": ({"train": 737280}, ("train", 589824, 590024), 73728),
  "smallnorb_azimuth": ({"train": 24300, "test": 24300}, ("test", 0, 200), 12150),
}  # fmt: skip


def test_there_are_the_19_tasks_of_three_groups():
  assert list(vtab.TASKS) == list(EXPECTED)
  groups = [task.group for task in vtab.TASKS.values()]
  assert [groups.count(group) for group in vtab.GROUPS] == [7, 4, 8]
  assert vtab.GROUPS == ("natural", "specialized", "structured")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_task_is_the_published_one(name):
  task = vtab.TASKS[name]
  splits = task.splits()
  assert EXPECTED[name] == (
    task.group,
    task.source.name,
    task.source.version,
    splits["train"],
    splits["validation"],
    splits["test"],
    task.num_classes,
  )
  assert splits["trainval"] == f"{splits['train']}+{splits['validation']}"
  assert len(task.class_names) in (0, task.num_classes)


def test_fashion_mnist_is_taken_in_the_same_way_and_is_no_vtab_task():
  task = vtab.EXTRA["fashion_mnist"]
  assert task.splits() == {
    "train": "train[:800]",
    "validation": "train[54000:54200]",
    "trainval": "train[:800]+train[54000:54200]",
    "test": "test",
  }
  assert "fashion_mnist" in vtab.ENTRIES
  assert len(vtab.ENTRIES) == 20
  assert set(vtab.ENTRIES) <= set(registry.names())


@pytest.mark.parametrize("name", EXPECTED)
def test_the_version_and_classes_are_those_of_the_installed_builder(name, tmp_path):
  tfds = _tfds()
  task = vtab.TASKS[name]
  _, source, version, *_, num_classes = EXPECTED[name]
  builder = tfds.builder(f"{source}:{version}", data_dir=tmp_path, try_gcs=False)
  assert str(builder.version) == version
  assert str(builder.canonical_version) == version
  assert bool(builder.MANUAL_DOWNLOAD_INSTRUCTIONS) == bool(task.source.manual)
  if task.label is labels.plain:
    assert builder.info.features["label"].num_classes == num_classes


@pytest.mark.parametrize("name", SIZES)
def test_the_split_expressions_give_the_published_indices(name):
  tfds = _tfds()
  sizes, (split, begin, end), num_test = SIZES[name]
  infos = {
    split: tfds.core.SplitInfo(
      name=split, shard_lengths=[n], num_bytes=0,
      filename_template=tfds.core.ShardedFileTemplate(data_dir=".", dataset_name="x", split=split),
    )
    for split, n in sizes.items()
  }  # fmt: skip
  splits = vtab.TASKS[name].splits()

  def absolute(expression):
    instruction = tfds.core.ReadInstruction.from_spec(expression)
    return [
      (part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
      for part in instruction.to_absolute(infos)
    ]

  assert absolute(splits["train"]) == [("train", 0, 800)]
  assert absolute(splits["validation"]) == [(split, begin, end)]
  assert absolute(splits["trainval"]) == [("train", 0, 800), (split, begin, end)]
  [(_, begin, end)] = absolute(splits["test"])
  assert end - begin == num_test


def _objects(depths):
  return {"objects": {"pixel_coords": np.float32([[1, 2, depth] for depth in depths])}}


@pytest.mark.parametrize(("count", "label"), [(3, 0), (4, 1), (9, 6), (10, 7)])
def test_clevr_count(count, label):
  assert labels.clevr_count(_objects([5.0] * count)) == label


@pytest.mark.parametrize("count", [0, 2, 11])
def test_clevr_count_refuses_other_numbers(count):
  with pytest.raises(ValueError, match=f"{count} objects; allowed: 3 to 10"):
    labels.clevr_count(_objects([5.0] * count))


@pytest.mark.parametrize(
  ("depth", "label"),
  [
    (0.1, 0), (8.0, 0), (8.001, 1), (8.5, 1), (8.501, 2), (9.0, 2), (9.001, 3), (9.5, 3),
    (9.501, 4), (10.0, 4), (10.001, 5), (99.0, 5), (100.0, 5),
  ],
)  # fmt: skip
def test_clevr_distance_is_of_the_nearest_object(depth, label):
  assert labels.clevr_distance(_objects([100.0, depth, 100.0])) == label


@pytest.mark.parametrize("depths", [[], [0.0], [100.5]])
def test_clevr_distance_refuses_what_is_in_no_bin(depths):
  with pytest.raises(ValueError, match="CLEVR"):
    labels.clevr_distance(_objects(depths))


@pytest.mark.parametrize(
  ("types", "z", "label"),
  [
    ([0], [8.0], 0), ([0], [8.01], 1), ([1], [20.0], 1), ([2], [20.01], 2), ([2], [500.0], 2),
    ([0], [-3.0], 0), ([], [], 3), ([3, 4, 5, 6, 7], [1.0] * 5, 3), ([3, 1], [1.0, 9.0], 1),
    ([0, 1, 2], [30.0, 19.0, 25.0], 1), ([0], [999.0], 2),
  ],
)  # fmt: skip
def test_kitti_distance_is_of_the_nearest_car_van_or_truck(types, z, label):
  objects = {
    "type": np.int64(types),
    "location": np.float32([[9, 9, d] for d in z]).reshape(-1, 3),
  }
  assert labels.kitti_distance({"objects": objects}) == label


def test_dsprites_bins():
  location = [labels.dsprites_location({"label_x_position": x}) for x in range(32)]
  assert location == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11,
                      12, 12, 13, 13, 14, 14, 15, 15]  # fmt: skip
  orientation = [labels.dsprites_orientation({"label_orientation": o}) for o in range(40)]
  assert orientation == [
    0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6, 6, 7, 7,
    8, 8, 8, 9, 9, 10, 10, 10, 11, 11, 12, 12, 12, 13, 13, 14, 14, 14, 15, 15,
  ]  # fmt: skip


def test_smallnorb_and_plain_labels():
  example = {"label_azimuth": np.int64(17), "label_elevation": np.int64(8), "label": np.int64(3)}
  assert labels.smallnorb_azimuth(example) == 17
  assert labels.smallnorb_elevation(example) == 8
  assert labels.plain(example) == 3


def test_resize_by_hand():
  image = np.uint8([[[0], [100]]])
  np.testing.assert_array_equal(resize.bilinear(image, 1, 4)[..., 0], [[0, 25, 75, 100]])
  row = np.arange(9, dtype=np.uint8)[None, :, None] * 10
  # A third of the size: the middle pixel of each three, no mean over what is passed by.
  np.testing.assert_array_equal(resize.bilinear(row, 1, 3)[..., 0], [[10, 40, 70]])


@pytest.mark.parametrize("size", [(32, 32), (300, 200), (97, 411), (224, 224), (1, 5)])
def test_resize_is_tensorflows(size):
  tf = pytest.importorskip("tensorflow", reason="compares with tf.image.resize")
  image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
  theirs = tf.image.resize(image, (224, 224)).numpy()
  assert np.abs(resize.bilinear(image, 224, 224) - theirs).max() <= 0.5 + 1e-3


def test_scores_by_hand():
  accuracies = {f"vtab/{name}": 0.0 for name in EXPECTED}
  for name, (group, *_) in EXPECTED.items():
    accuracies[f"vtab/{name}"] = {"natural": 0.7, "specialized": 0.8, "structured": 0.5}[group]
  assert vtab.group_means(accuracies) == pytest.approx(
    {"natural": 0.7, "specialized": 0.8, "structured": 0.5}
  )
  assert vtab.score(accuracies) == pytest.approx((7 * 0.7 + 4 * 0.8 + 8 * 0.5) / 19)
  assert vtab.mean_of_group_means(accuracies) == pytest.approx(2.0 / 3)


def test_a_score_needs_all_tasks():
  some = {name: 0.5 for name in EXPECTED if name != "dtd"}
  for function in (vtab.score, vtab.group_means, vtab.mean_of_group_means):
    with pytest.raises(ValueError, match=r"missing: \['dtd'\]"):
      function(some)
  with pytest.raises(ValueError, match="cifar10"):
    vtab.score({**some, "dtd": 0.5, "cifar10": 0.9})


def test_a_task_that_is_not_prepared_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(errors.MissingDataError) as error:
    vtab.ENTRIES["vtab/dmlab"]("train", 224)
  text = str(error.value)
  assert "3.0 GB" in text
  assert str(tmp_path / "dmlab" / "2.0.1") in text
  assert "python -m subtune_jax.data.prepare vtab/dmlab" in text
  with pytest.raises(errors.MissingDataError) as error:
    vtab.ENTRIES["vtab/resisc45"]("train", 224)
  text = str(error.value)
  assert "NWPU-RESISC45.rar" in text
  assert str(tmp_path / "downloads" / "manual") in text


@pytest.mark.parametrize(
  ("arguments", "options", "match"),
  [
    (("val", 8), {}, "validation"),
    (("train", 8), {"interpolation": "nearest"}, "bilinear_no_antialias"),
    (("train", 0), {}, "image_size=0"),
  ],
)
def test_arguments_are_checked_first(arguments, options, match):
  with pytest.raises(ValueError, match=match):
    vtab.ENTRIES["vtab/dtd"](*arguments, **options)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """A prepared builder with CLEVR's kind of features: 6 training and 4 test images."""
  tfds = _tfds()

  class TinyScenes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        disable_shuffling=True,
        features=tfds.features.FeaturesDict(
          {
            "image": tfds.features.Image(shape=(8, 6, 1), encoding_format="png"),
            "objects": tfds.features.Sequence(
              {"pixel_coords": tfds.features.Tensor(shape=(3,), dtype=np.float32)}
            ),
          }
        ),
      )

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(6), "test": self._generate_examples(4)}

    def _generate_examples(self, n):
      for i in range(n):
        image = np.full((8, 6, 1), i % 2, np.uint8)
        objects = [{"pixel_coords": [0.0, 0.0, 9.0]}] * (3 + i)
        yield i, {"image": image, "objects": objects}

  builder = TinyScenes(data_dir=tmp_path_factory.mktemp("tfds"))
  builder.download_and_prepare()
  return builder


@pytest.fixture
def task(tiny, monkeypatch, tmp_path):
  monkeypatch.setenv("SUBTUNE_JAX_CACHE", str(tmp_path))
  monkeypatch.setattr(tfds_source, "open_builder", lambda source, name: tiny)
  return dataclasses.replace(
    vtab.TASKS["clevr_count"], train="train[:3]", validation="train[4:5]", image_scale=255
  )


def test_loads_in_the_order_on_disk(task):
  task = dataclasses.replace(task, test="test")
  expected = {"train": [0, 1, 2], "validation": [4], "trainval": [0, 1, 2, 4], "test": [0, 1, 2, 3]}
  for split, classes in expected.items():
    data = vtab.load(task, split, 4)
    assert data.labels.tolist() == classes
    assert data.images.shape == (len(classes), 4, 4, 3)
    # One channel of 0 and 1 became three of 0 and 255.
    assert [image.min() for image in data.images] == [255 * (i % 2) for i in classes]
    assert [image.max() for image in data.images] == [255 * (i % 2) for i in classes]
    assert data.groups.tolist() == data.ids.tolist()
    assert len(set(data.ids)) == len(classes)
    assert data.ids[-1].endswith(f"__{classes[-1]}")
    assert data.class_names[0] == "3 objects"
    assert (data.name, data.split) == ("vtab/clevr_count", split)


def test_a_second_load_takes_the_images_from_the_cache(task, monkeypatch):
  first = vtab.load(task, "train", 4)
  monkeypatch.setattr(resize, "bilinear", None)
  assert vtab.load(task, "train", 4).fingerprint() == first.fingerprint()
  vtab.load(task, "train", 4, interpolation="bicubic")
  with pytest.raises(errors.BrokenImageError):
    vtab.load(task, "train", 5)


def test_a_split_too_large_for_the_cache_goes_to_a_scratch_file(task, monkeypatch, tmp_path):
  cached = vtab.load(task, "train", 4)
  monkeypatch.setenv("SUBTUNE_JAX_CACHE_BYTES", "0")
  data = vtab.load(task, "train", 4)
  assert isinstance(data.images, np.memmap)
  assert data.fingerprint() == cached.fingerprint()


def test_other_class_names_than_the_tasks_are_refused(task):
  with pytest.raises(ValueError, match="8 classes"):
    vtab.load(dataclasses.replace(task, class_names=("a", "b")), "train", 4)


def _tfds():
  pytest.importorskip("tensorflow", reason="reads TFDS's builders")
  pytest.importorskip("tensorflow_datasets", reason="reads TFDS's builders")
  return tfds_source.import_tfds()
