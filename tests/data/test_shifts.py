"""The shift benchmarks: maps and masks by hand, sources against TFDS, folders with tiny images."""

import dataclasses

import numpy as np
from PIL import Image
import pytest

from subtune_jax.data import dataset, errors, registry, shifts, tfds_source
from subtune_jax.data.shifts import folders, maps, tfds_sets


def _data(labels, class_names, name="x"):
  n = len(labels)
  ids = np.array([str(i) for i in range(n)])
  images = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
  return dataset.Dataset(images, np.int32(labels), ids, ids, tuple(class_names), name, "test")


def test_stl10_gets_cifar10s_labels_and_loses_monkey():
  stl10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
  cifar10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
  )  # fmt: skip
  shift = shifts.SHIFTS["cifar10_to_stl10"]
  assert (shift.id_data, shift.ood_data) == ("cifar10", ("stl10",))
  mapped = shift.map_labels("stl10", _data(range(10), stl10), cifar10)
  assert mapped.labels.tolist() == [0, 2, 1, 3, 4, 5, 7, 8, 9]
  assert mapped.ids.tolist() == ["0", "1", "2", "3", "4", "5", "6", "8", "9"]
  assert mapped.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9]
  assert mapped.class_names == cifar10
  assert shift.class_mask("stl10", mapped.labels, 10) is None  # frog may be predicted
  assert stl10 == maps.STL10
  assert cifar10 == maps.CIFAR10


def test_a_map_that_does_not_fit_is_refused():
  data = _data([0, 1], "ab")
  for label_map in ([0], [0, 5], [0, -2]):
    with pytest.raises(ValueError, match="the label map must give"):
      maps.apply(data, label_map, ("a", "b"))
  with pytest.raises(ValueError, match="no example"):
    maps.apply(data, [-1, -1], ("a", "b"))


def test_without_a_map_the_classes_must_be_the_heads():
  shift = shifts.SHIFTS["living17"]
  data = _data([0, 1], ("cat", "dog"))
  assert shift.map_labels("living17/target", data, ("cat", "dog")) is data
  with pytest.raises(ValueError, match="no label map"):
    shift.map_labels("living17/target", data, ("dog", "cat"))
  with pytest.raises(ValueError, match="living17/target"):
    shift.map_labels("living17/source", data, ("cat", "dog"))


def test_imagenet_r_and_a_are_restricted_to_their_200_classes():
  shift = shifts.SHIFTS["imagenet"]
  assert shift.ood_data == ("imagenet_v2", "imagenet_r", "imagenet_a", "imagenet_sketch")
  labels = np.arange(0, 1000, 5).repeat(3)
  for name in ("imagenet_r", "imagenet_a"):
    mask = shift.class_mask(name, labels, 1000)
    assert mask.dtype == bool
    assert np.flatnonzero(mask).tolist() == list(range(0, 1000, 5))
    with pytest.raises(ValueError, match="199 classes occur, the benchmark has 200"):
      shift.class_mask(name, labels[3:], 1000)
  assert shift.class_mask("imagenet_v2", labels, 1000) is None
  explicit = dataclasses.replace(shift, class_masks={"imagenet_r": (1, 3)})
  assert explicit.class_mask("imagenet_r", labels, 4).tolist() == [False, True, False, True]


def test_a_mask_from_a_published_list(tmp_path):
  path = tmp_path / "classes.txt"
  path.write_text("n03\nn01\n\n")
  assert maps.mask_of_file(path, ("n01", "n02", "n03")).tolist() == [True, False, True]
  path.write_text("n03\nn09\n")
  with pytest.raises(ValueError, match="n09"):
    maps.mask_of_file(path, ("n01", "n02", "n03"))


def test_the_40_classes_of_domainnet():
  assert len(maps.DOMAINNET40) == len(set(maps.DOMAINNET40)) == 40
  assert list(maps.DOMAINNET40) == sorted(maps.DOMAINNET40)
  label_map = maps.by_name(("zebra", "airplane", "truck", "bed"), (*maps.DOMAINNET40[:1], "bed"))
  assert label_map == (-1, 0, -1, 1)
  with pytest.raises(ValueError, match="whale"):
    maps.by_name(("zebra",), ("whale",))
  shift = shifts.SHIFTS["domainnet40"]
  assert shift.id_data == "domainnet40/sketch"
  assert shift.ood_data == ("domainnet40/real", "domainnet40/clipart", "domainnet40/painting")


def test_domainnet_labels_by_hand():
  tfds = _tfds()
  source = tfds_sets.SETS["domainnet40/sketch"].source
  names = tfds.builder(source.name, data_dir="/nonexistent").info.features["label"].names
  assert len(names) == 345
  label = tfds_sets._label(tuple(names), maps.DOMAINNET40)
  # Positions among the 345, in the order of the lists that SENTRY publishes.
  native = [1, 3, 8, 12, 13, 21, 23, 25, 26, 29, 31, 35, 42, 47, 49, 51, 52, 55, 61, 64, 68, 73, 81,
            91, 92, 93, 98, 99, 103, 111, 124, 147, 153, 235, 252, 258, 290, 301, 304,
            325]  # fmt: skip
  assert [label({"label": position}) for position in native] == list(range(40))
  assert label({"label": 0}) == -1
  assert sum(label({"label": position}) >= 0 for position in range(345)) == 40


def test_all_corruptions_and_severities():
  assert sum(name.startswith("cifar10_c/") for name in shifts.ENTRIES) == 19 * 5
  assert len(shifts.SHIFTS["cifar10_to_cifar10_c"].ood_data) == 15 * 5
  sources = shifts.SOURCES
  assert sources["cifar10_c/glass_blur/3"].name == "cifar10_corrupted/frosted_glass_blur_3"
  assert sources["cifar10_c/elastic_transform/5"].name == "cifar10_corrupted/elastic_5"
  assert sources["imagenet_c/glass_blur/3"].name == "imagenet2012_corrupted/glass_blur_3"
  assert sources["cifar10_1"].name == "cifar10_1/v6"
  assert sources["cifar10_1/v4"].name == "cifar10_1/v4"


def test_every_set_of_a_benchmark_can_be_loaded():
  for shift in shifts.SHIFTS.values():
    for name in (shift.id_data, *shift.ood_data):
      assert name in shifts.ENTRIES, name
      assert "test" in shifts.SPLITS.get(name, ("test",))
    assert "train" in shifts.SPLITS.get(shift.id_data, ("train",))
    assert shift.id_data not in shift.ood_data
    assert set(shift.label_maps) | set(shift.class_masks) <= set(shift.ood_data)
  assert shifts.SPLITS["cifar10"] == ("train", "validation", "test", "trainval")
  assert tfds_sets.SETS["cifar10"].all_splits()["trainval"] == "train[:45000]+train[45000:]"
  assert shifts.SPLITS["imagenet_v2"] == ("test",)


def test_the_registry_has_them_and_shows_the_corrupted_ones_as_a_pattern():
  assert set(shifts.ENTRIES) <= set(registry.names())
  assert registry.splits_of("imagenet_r") == ("test",)
  with pytest.raises(ValueError) as error:
    registry.load("imagenet-r", "test", 8)
  assert "Did you mean 'imagenet_r'" in str(error.value)
  assert "'cifar10_c/<corruption>/<severity>'" in str(error.value)
  assert "glass_blur" not in str(error.value)


def test_versions_and_configurations_are_those_of_the_installed_builders():
  tfds = _tfds()
  for name, source in shifts.SOURCES.items():
    builder_name, _, config = source.name.partition("/")
    cls = tfds.builder_cls(builder_name)
    configs = {entry.name: entry for entry in cls.BUILDER_CONFIGS or ()}
    assert (config in configs) if config else not configs, name
    version = getattr(configs.get(config), "version", None) or cls.VERSION
    assert source.version == str(version), name
    assert bool(source.manual) == bool(cls.MANUAL_DOWNLOAD_INSTRUCTIONS), name


def test_a_set_that_is_not_there_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  monkeypatch.setenv("SUBTUNE_JAX_DATA", str(tmp_path))
  parts = {
    "cifar10": ["170 MB", "subtune_jax.data.prepare cifar10"],
    "imagenet_c/fog/2": ["ILSVRC2012_img_val.tar", "prepare imagenet_c/fog/2"],
    "office_home/real_world": [str(tmp_path / "office_home/Real World"), "OfficeHomeDataset"],
    "fmow/europe": [str(tmp_path / "fmow/europe"), "WILDS"],
    "living17/target": [str(tmp_path / "living17.csv"), "make_living17", "SUBTUNE_JAX_DATA"],
  }
  for name, texts in parts.items():
    with pytest.raises(errors.MissingDataError) as error:
      shifts.ENTRIES[name]("test", 32)
    assert all(text in str(error.value) for text in texts), str(error.value)


@pytest.mark.parametrize(
  ("name", "split", "options", "match"),
  [
    ("imagenet_r", "train", {}, "'test'"),
    ("cifar10", "val", {}, "validation"),
    ("cifar10", "test", {"interpolation": "nearest"}, "bicubic"),
  ],
)
def test_arguments_are_checked_first(name, split, options, match):
  with pytest.raises(ValueError, match=match):
    shifts.ENTRIES[name](split, 32, **options)


def _image(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((20, 40, 3), value, np.uint8)).save(path)


def _class_list(path, rows):
  path.write_text("superclass,domain,wnid\n" + "".join(f"{','.join(row)}\n" for row in rows))


def test_a_breeds_domain_over_a_folder_of_imagenet(tmp_path, monkeypatch):
  monkeypatch.setenv("SUBTUNE_JAX_DATA", str(tmp_path))
  monkeypatch.setitem(folders.BREEDS, "tiny/target", folders.BreedsSet("tiny", "target", 2, 1))
  _class_list(tmp_path / "tiny.csv", [
    ("dog", "source", "n1"), ("cat", "source", "n2"), ("cat", "target", "n3"),
    ("dog", "target", "n4"),
  ])  # fmt: skip
  for wnid, value in (("n3", 30), ("n4", 40)):
    for i in range(20):
      _image(tmp_path / "imagenet" / "train" / wnid / f"{wnid}_{i:02d}.png", value + i)
    _image(tmp_path / "imagenet" / "val" / wnid / "a.png", value)
  train, validation, trainval, test = (
    folders.load_breeds("tiny/target", split, 8)
    for split in ("train", "validation", "trainval", "test")
  )
  assert train.class_names == ("dog", "cat")
  assert [len(x) for x in (train, validation, trainval, test)] == [36, 4, 40, 2]
  assert validation.ids.tolist() == [
    "train/n4/n4_09.png", "train/n4/n4_19.png", "train/n3/n3_09.png", "train/n3/n3_19.png",
  ]  # fmt: skip
  assert validation.labels.tolist() == [0, 0, 1, 1]
  assert not set(train.ids) & set(validation.ids)
  assert validation.images[np.array([0, 3])][:, 0, 0, 0].tolist() == [49, 49]
  assert test.images[:].shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
  ("rows", "match"),
  [
    ([("dog", "source", "n1"), ("dog", "target", "n1")], "n1 is given twice"),
    ([("dog", "train", "n1")], "domain 'train'"),
    ([("dog", "source", "n1")], "target must have 1 subclasses"),
  ],
)
def test_a_class_list_that_is_not_the_benchmarks_is_refused(tmp_path, rows, match):
  _class_list(tmp_path / "x.csv", rows)
  with pytest.raises(ValueError, match=match):
    maps.read_breeds(tmp_path / "x.csv", num_classes=1, subclasses=1)


def test_the_published_counts_of_breeds():
  assert (folders.BREEDS["living17/source"].num_classes, 17) == (17, 17)
  assert folders.BREEDS["living17/target"].subclasses == 2
  assert folders.BREEDS["entity30/source"].num_classes == 30
  assert folders.BREEDS["entity30/target"].subclasses == 4


def test_office_home_is_split_by_class(tmp_path, monkeypatch):
  monkeypatch.setenv("SUBTUNE_JAX_DATA", str(tmp_path))
  monkeypatch.setenv("SUBTUNE_JAX_CACHE", str(tmp_path / "cache"))
  for name in ("Bed", "Bike"):
    for i in range(20):
      _image(tmp_path / "office_home" / "Art" / name / f"{i:05d}.jpg", i)
  sizes = {}
  for split in ("train", "validation", "test"):
    data = shifts.ENTRIES["office_home/art"](split, 8)
    assert (data.name, data.class_names) == ("office_home/art", ("Bed", "Bike"))
    sizes[split] = len(data)
  assert sizes == {"train": 28, "validation": 6, "test": 6}


def test_a_tfds_set_is_filtered_renumbered_and_cropped(tmp_path, monkeypatch):
  tfds = _tfds()

  class TinyDomain(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        disable_shuffling=True,
        features=tfds.features.FeaturesDict(
          {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["zebra", "truck", "bed"]),
          }
        ),
      )

    def _split_generators(self, dl_manager):
      return {"test": self._generate_examples()}

    def _generate_examples(self):
      for i in range(6):
        image = np.zeros((16, 32, 3), np.uint8)
        image[:, 8:24] = 10 * (i + 1)
        yield i, {"image": image, "label": i % 3}

  builder = TinyDomain(data_dir=tmp_path)
  builder.download_and_prepare()
  monkeypatch.setenv("SUBTUNE_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(tfds_source, "open_builder", lambda source, name: builder)
  entry = tfds_sets.SETS["domainnet40/real"]
  entry = dataclasses.replace(entry, keep=("bed", "truck"), crop=224 / 256)
  monkeypatch.setitem(tfds_sets.SETS, "domainnet40/real", entry)
  data = tfds_sets.load("domainnet40/real", "test", 14)
  assert data.labels.tolist() == [1, 0, 1, 0]
  assert data.class_names == ("bed", "truck")
  assert [i.rsplit("__")[-1] for i in data.ids] == ["1", "2", "4", "5"]
  assert data.images.shape == (4, 14, 14, 3)
  # The crop is the middle 14 of 32 columns: no black edge.
  assert data.images.min(axis=(1, 2, 3)).tolist() == [20, 30, 50, 60]


def _tfds():
  pytest.importorskip("tensorflow", reason="reads TFDS's builders")
  pytest.importorskip("tensorflow_datasets", reason="reads TFDS's builders")
  return tfds_source.import_tfds()
