"""A user's folder of images: layouts, splits, formats, and what is refused."""

import os
import pathlib
import shutil

import numpy as np
from PIL import Image
import pytest

from subtune_jax import data
from subtune_jax.data import cache, decode, errors, folder, layout, lazy, resize


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("SUBTUNE_JAX_CACHE", str(tmp_path / "cache"))


def write(path: pathlib.Path, value: int = 0, size: tuple[int, int] = (12, 9)) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, (value % 256, 10, 20)).save(path)
  return path


@pytest.fixture
def root(tmp_path):
  """20 images in each of class 1, class 2 and class 10."""
  for i in range(20):
    for c in (1, 2, 10):
      write(tmp_path / "images" / f"class {c}" / f"{i}.png", 12 * i + c)
  return tmp_path / "images"


def load(root, split="train", size=8, **options):
  return folder.load(f"folder:{root}", split, size, **options)


def test_class_folders(root):
  parts = {split: data.load(f"folder:{root}", split, 8) for split in folder.SHARES}
  assert {split: len(part) for split, part in parts.items()} == {
    "train": 42,
    "validation": 9,
    "test": 9,
  }
  ids = [str(i) for part in parts.values() for i in part.ids]
  assert len(set(ids)) == 60
  for split, part in parts.items():
    assert part.class_names == ("class 1", "class 2", "class 10")
    assert (part.name, part.split) == (f"folder:{root}", split)
    assert set(np.bincount(part.labels)) == {len(part) // 3}
    assert part.groups.tolist() == part.ids.tolist()
    for image, label, name in zip(part.images, part.labels, part.ids, strict=True):
      assert name.startswith(part.class_names[label] + "/")
      np.testing.assert_array_equal(image, decode.square(root / name, 8))
  both = data.load(f"folder:{root}", "trainval", 8)
  assert both.ids.tolist() == parts["train"].ids.tolist() + parts["validation"].ids.tolist()


def test_files_are_in_the_order_of_their_numbers(root):
  ids = [i for i in load(root).ids if i.startswith("class 2/")]
  numbers = [int(pathlib.Path(i).stem) for i in ids]
  assert numbers == sorted(numbers)


def test_natural_order():
  names = ["b", "a10", "a2", "a", "10", "9", "a02", "a2b", "1" * 5000, "٣"]
  expected = ["9", "10", "1" * 5000, "a", "a02", "a2", "a2b", "a10", "b", "٣"]
  assert sorted(names, key=layout.natural) == expected


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_split_folders(tmp_path, validation):
  for split, n in (("train", 3), (validation, 2), ("test", 1)):
    for i in range(n):
      write(tmp_path / "s" / split / "cat" / "deep" / f"{i}.jpg")
  write(tmp_path / "s" / "train" / "dog" / "0.jpg")
  sizes = {split: len(load(tmp_path / "s", split)) for split in ("train", "validation", "test")}
  assert sizes == {"train": 4, "validation": 2, "test": 1}
  test = load(tmp_path / "s", "test")
  assert (test.class_names, test.ids.tolist()) == (("cat", "dog"), ["test/cat/deep/0.jpg"])
  assert load(tmp_path / "s", "trainval").labels.tolist() == [0, 0, 0, 1, 0, 0]


def test_split_folders_refuse(tmp_path):
  root = tmp_path / "s"
  write(root / "train" / "cat" / "0.jpg")
  with pytest.raises(ValueError, match="no image in the split 'test'; it has 'train'"):
    load(root, "test")
  with pytest.raises(ValueError, match="no image in the split 'validation'"):
    load(root, "trainval")
  write(root / "test" / "cta" / "0.jpg")
  with pytest.raises(ValueError, match="test has the class 'cta', which train does not have"):
    load(root)
  shutil.rmtree(root / "test")
  (root / "val").mkdir()
  (root / "validation").mkdir()
  with pytest.raises(ValueError, match="both 'val' and 'validation'"):
    load(root)
  (root / "val").rmdir()
  write(root / "extra" / "0.jpg")
  with pytest.raises(ValueError, match="has the folder 'extra' beside 'train'"):
    load(root)


@pytest.mark.parametrize("name", ["train", "test", "val"])
@pytest.mark.parametrize("beside", ["bus", None])
def test_a_folder_of_images_named_as_a_split_is_refused_with_both_readings(tmp_path, name, beside):
  for folder_name in filter(None, (name, beside)):
    for i in range(4):
      write(tmp_path / "i" / folder_name / f"{i}.jpg")
  message = f"the folder {name!r} may be a split or a class.*{name}/CLASS/.*labels.csv"
  with pytest.raises(ValueError, match=message) as caught:
    load(tmp_path / "i")
  assert ("beside 'bus'" in str(caught.value)) == bool(beside)


def test_a_class_may_be_called_as_a_split(tmp_path):
  for split in ("train", "test"):
    for name in ("train", "bus"):
      write(tmp_path / "i" / split / name / "0.jpg")
  assert load(tmp_path / "i").class_names == ("bus", "train")
  root = write_csv(tmp_path / "c", "file,label\nfiles/0.jpg,test\nfiles/1.jpg,train\n")
  assert load(root).class_names == ("test", "train")


def write_csv(root, text):
  root.mkdir(exist_ok=True)
  (root / "labels.csv").write_text(text)
  for i in range(6):
    write(root / "files" / f"{i}.jpg", i)
  return root


def test_csv_with_splits_and_groups(tmp_path):
  text = "file,label,split,group\n" + "".join(
    f"files/{i}.jpg,{'ab'[i % 2]},{split},{group}\n"
    for i, (split, group) in enumerate(
      [("train", "g"), ("train", "g"), ("val", ""), ("test", "h"), ("train", "k"), ("test", "h")]
    )
  )
  root = write_csv(tmp_path / "c", "\ufeff" + text)
  train, validation = load(root), load(root, "validation")
  assert train.ids.tolist() == ["files/0.jpg", "files/1.jpg", "files/4.jpg"]
  assert train.labels.tolist() == [0, 1, 0]
  assert train.groups.tolist() == ["g", "g", "k"]
  assert (validation.ids.tolist(), validation.groups.tolist()) == (["files/2.jpg"],) * 2
  assert train.class_names == ("a", "b")


def test_csv_groups_stay_whole(tmp_path):
  root = tmp_path / "g"
  rows = [f"{i}.png,{i % 3},g{i // 4}\n" for i in range(120)]
  for i in range(120):
    write(root / f"{i}.png", i)
  (root / "labels.csv").write_text("file,label,group\n" + "".join(rows))
  parts = [load(root, split) for split in folder.SHARES]
  assert [len(part) for part in parts] == pytest.approx([84, 18, 18], abs=4)
  groups = [set(part.groups) for part in parts]
  assert sum(map(len, groups)) == 30


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "the columns are"),
    ("file,lable\n", "Unknown column of .*'lable'. Did you mean 'label'"),
    ("file\n", "needed: file,label"),
    ("file,label,label\n", "the columns are"),
    ("file,label\n", "lists no image"),
    ("file,label\nfiles/0.jpg\n", "line 2: it has more or fewer values"),
    ("file,label\nfiles/0.jpg,a,b\n", "line 2: it has more or fewer values"),
    ("file,label\nfiles/0.jpg,\n", "line 2: file and label must not be empty"),
    ("file,label\n../x.jpg,a\n", r"line 2: '\.\./x\.jpg' must be a path within the folder"),
    ("file,label\n/etc/passwd,a\n", "must be a path within the folder"),
    ("file,label,split\nfiles/0.jpg,a,trian\n", "Unknown split in .*line 2.*mean 'train'"),
    ("file,label,split\nfiles/0.jpg,a,\n", "Unknown split in .*line 2"),
    ("file,label\nfiles/0.jpg,a\n./files/0.jpg,b\n", "lists 'files/0.jpg' 2 times"),
    ("file,label\n" + "x" * 200_000 + ",a\n", "not a CSV file in UTF-8"),
    ("file,label\nfiles/9.jpg,a\n", r"files/9\.jpg \(No such file or directory\)"),
    ("file,label\nfiles,a\n", r"files \(not a regular file\)"),
    ("file,label\nfil\0es,a\n", "embedded null|line contains NUL"),
  ],
)
def test_csv_refuses(tmp_path, text, message):
  with pytest.raises(ValueError, match=message):
    load(write_csv(tmp_path / "c", text))


def test_csv_that_is_not_utf8(tmp_path):
  root = write_csv(tmp_path / "c", "")
  (root / "labels.csv").write_bytes(b"file,label\n\xff\xfe,a\n")
  with pytest.raises(ValueError, match="not a CSV file in UTF-8"):
    load(root)


def test_groups_in_several_given_splits_are_logged(tmp_path, caplog):
  text = "file,label,split,group\nfiles/0.jpg,a,train,g\nfiles/1.jpg,a,test,g\n"
  load(write_csv(tmp_path / "c", text))
  assert "1 groups are in several splits, as 'g'" in caplog.text


def test_folders_that_hold_nothing_are_refused(tmp_path):
  with pytest.raises(errors.MissingDataError, match=r"nowhere.*Give the path of a folder"):
    load(tmp_path / "nowhere")
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="no folders of classes"):
    load(tmp_path / "empty")
  (tmp_path / "empty" / "cat").mkdir()
  with pytest.raises(ValueError, match="no image in 1 folders"):
    load(tmp_path / "empty")


def test_broken_images_are_named_and_refused_or_skipped(root, caplog):
  for i in range(12):
    (root / "class 1" / f"bad {i}.jpg").write_text("this is text")
  with pytest.raises(errors.BrokenImageError) as caught:
    load(root)
  message = str(caught.value)
  assert "12 images cannot be read: class 1/bad 0.jpg (not an image of a known format)" in message
  assert "bad 9.jpg" in message
  assert "bad 10.jpg" not in message
  assert "and 2 more" in message
  assert "?on_broken=skip" in message
  found = data.load(f"folder:{root}?on_broken=skip", "trainval", 8)
  assert found.name == f"folder:{root}"
  assert "Left out 12 broken of 72 images" in caplog.text
  assert not any("bad" in i for i in found.ids)
  kept = [len(load(root, split, on_broken="skip")) for split in folder.SHARES]
  assert sum(kept) == 60


@pytest.mark.parametrize(
  ("query", "message"),
  [
    ("?on_broken=skpi", "Unknown on_broken 'skpi'. Did you mean 'skip'"),
    ("?onbroken=skip", "Unknown option of .*'onbroken'. Did you mean 'on_broken'"),
    ("?", "Unknown option"),
  ],
)
def test_options_are_checked(root, query, message):
  with pytest.raises(ValueError, match=message):
    data.load(f"folder:{root}{query}", "train", 8)


def test_a_question_mark_in_the_path(root):
  root.rename(root.with_name("what?"))
  assert len(load(root.with_name("what?"))) == 42


def test_a_split_of_broken_images_alone_is_refused(tmp_path):
  write(tmp_path / "b" / "train" / "cat" / "0.jpg")
  (tmp_path / "b" / "test" / "cat").mkdir(parents=True)
  (tmp_path / "b" / "test" / "cat" / "0.jpg").write_bytes(b"")
  assert len(load(tmp_path / "b", on_broken="skip")) == 1
  with pytest.raises(ValueError, match="the split 'test' has no image"):
    load(tmp_path / "b", "test", on_broken="skip")


def test_the_cache_is_used_and_notices_changes(root, monkeypatch):
  first = load(root)
  assert isinstance(first.images.base, np.memmap)
  calls = []
  real = decode._read
  monkeypatch.setattr(decode, "_read", lambda path, use: calls.append(path) or real(path, use))
  again = load(root)
  assert calls == []
  assert again.fingerprint() == first.fingerprint()
  write(root / str(first.ids[0]), 255, (30, 30))
  changed = load(root)
  assert len(calls) == 60 + 42  # The check, then the split.
  assert changed.images[0, 0, 0].tolist() == [255, 10, 20]
  assert changed.fingerprint() != first.fingerprint()


def test_large_sets_are_lazy_and_equal_the_cached_ones(root, monkeypatch):
  cached = load(root)
  monkeypatch.setenv(cache.LIMIT_VARIABLE, "100")
  found = load(root)
  assert isinstance(found.images, lazy.LazyImages)
  np.testing.assert_array_equal(found.images[:], cached.images)
  assert found.ids.tolist() == cached.ids.tolist()


def test_the_splits_do_not_depend_on_where_the_folder_is(root, tmp_path):
  shutil.copytree(root, tmp_path / "copy")
  one, other = load(root, "test"), load(tmp_path / "copy", "test")
  assert one.ids.tolist() == other.ids.tolist()
  assert one.fingerprint() == other.fingerprint()


def test_nothing_is_written_into_the_folder(root):
  before = sorted(os.walk(root))
  load(root)
  assert sorted(os.walk(root)) == before


def test_hidden_and_other_files_are_passed_over(root, caplog):
  (root / "class 1" / ".hidden.jpg").write_text("x")
  (root / "class 1" / "notes.txt").write_text("x")
  (root / ".git").mkdir()
  write(root / "cover.jpg")
  assert len(load(root)) == 42
  assert "1 images are in no class's folder" in caplog.text


@pytest.mark.parametrize("place", ["", "train", "train/cat"])
def test_links_in_circles_are_named(tmp_path, place):
  write(tmp_path / "s" / "train" / "cat" / "0.jpg")
  (tmp_path / "s" / place / "loop").symlink_to("loop")
  (tmp_path / "s" / place / "up").symlink_to(tmp_path / "s")
  name = f"{place}/loop".lstrip("/")
  with pytest.raises(ValueError) as caught:
    load(tmp_path / "s")
  if place == "":
    assert "has the folder 'up' beside 'train'" in str(caught.value)
    (tmp_path / "s" / "up").unlink()
    with pytest.raises(errors.BrokenImageError) as caught:
      load(tmp_path / "s")
  else:
    assert f"{place}/up (a link to a folder that is read already)" in str(caught.value)
  if place != "train/cat":  # There it is no image's name.
    assert f"{name} (Too many levels of symbolic links)" in str(caught.value)
  assert load(tmp_path / "s", on_broken="skip").ids.tolist() == ["train/cat/0.jpg"]


def test_names_that_are_not_utf8(root):
  try:
    write(root / "class 1" / "plain.png").rename(
      os.fsdecode(os.fsencode(root) + b"/class 1/\xff.png")
    )
  except OSError:
    pytest.skip("the file system takes UTF-8 names only")
  assert sum(len(load(root, split)) for split in folder.SHARES) == 61
  load(root).fingerprint()


# Formats: each is [height, width] pixels of known colours, at its own size and so not resized.
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters(*colours) -> np.ndarray:
  """[16, 16, 3]: top left, top right, bottom left, bottom right."""
  return np.array(colours, np.uint8).reshape(2, 2, 3).repeat(8, 0).repeat(8, 1)


FOUR = quarters(RED, GREEN, BLUE, WHITE)


@pytest.mark.parametrize(
  ("suffix", "options"),
  [
    ("png", {}), ("bmp", {}), ("tiff", {}), ("webp", {"lossless": True}), ("gif", {}),
    ("jpg", {"quality": 100, "subsampling": 0}),
  ],
)  # fmt: skip
def test_formats(tmp_path, suffix, options):
  path = tmp_path / f"image.{suffix}"
  Image.fromarray(FOUR).save(path, **options)
  found = decode.square(path, 16)
  assert (found.shape, found.dtype) == ((16, 16, 3), np.uint8)
  np.testing.assert_allclose(found.astype(int), FOUR, atol=3 if suffix == "jpg" else 0)


def test_the_suffix_does_not_decide_the_format(tmp_path):
  Image.fromarray(FOUR).save(tmp_path / "a.jpg", format="PNG")
  np.testing.assert_array_equal(decode.square(tmp_path / "a.jpg", 16), FOUR)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animations_give_their_first_frame(tmp_path, suffix):
  frames = [Image.fromarray(np.roll(FOUR, 8 * i, axis=1)) for i in range(3)]
  options = {"lossless": True} if suffix == "webp" else {}
  frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
  with Image.open(tmp_path / f"a.{suffix}") as image:
    assert image.n_frames == 3
  np.testing.assert_array_equal(decode.square(tmp_path / f"a.{suffix}", 16), FOUR)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_keep_the_upper_eight(tmp_path, suffix):
  values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
  Image.fromarray(values).save(tmp_path / f"a.{suffix}")
  found = decode.square(tmp_path / f"a.{suffix}", 16)
  np.testing.assert_array_equal(found[..., 1], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize(
  ("mode", "expected"),
  [
    ("L", (76, 76, 76)), ("1", (0, 0, 0)), ("P", RED), ("LA", (76, 76, 76)), ("RGBA", RED),
    ("RGBX", RED), ("CMYK", RED), ("YCbCr", (254, 0, 0)),
  ],
)  # fmt: skip
def test_modes(tmp_path, mode, expected):
  image = Image.new("RGB", (16, 16), RED)
  image = image.convert(mode, dither=Image.Dither.NONE) if mode == "1" else image.convert(mode)
  image.save(tmp_path / "a.tiff")
  found = decode.square(tmp_path / "a.tiff", 16)
  np.testing.assert_array_equal(found, np.broadcast_to(np.array(expected, np.uint8), found.shape))


def test_cmyk_jpeg(tmp_path):
  Image.new("RGB", (16, 16), RED).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
  np.testing.assert_allclose(decode.square(tmp_path / "a.jpg", 16)[0, 0].astype(int), RED, atol=4)


def test_transparency_is_laid_on_white(tmp_path):
  palette = Image.new("P", (16, 16), 0)
  palette.putpalette([0, 0, 0, 255, 0, 0])
  palette.paste(1, (0, 0, 8, 16))
  half = Image.new("RGBA", (16, 16), (255, 0, 0, 128))
  palette.save(tmp_path / "palette.png", transparency=0)
  palette.save(tmp_path / "palette.gif", transparency=0)
  half.save(tmp_path / "half.png")
  Image.new("RGB", (16, 16), BLUE).save(tmp_path / "key.png", transparency=BLUE)
  for name in ("palette.png", "palette.gif"):
    found = decode.square(tmp_path / name, 16)
    np.testing.assert_array_equal(found, quarters(RED, WHITE, RED, WHITE))
  assert decode.square(tmp_path / "half.png", 16)[3, 3].tolist() == [255, 127, 127]
  assert (decode.square(tmp_path / "key.png", 16) == 255).all()


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_exif_orientation(tmp_path, orientation, suffix):
  stored = {
    2: FOUR[:, ::-1], 3: FOUR[::-1, ::-1], 4: FOUR[::-1], 5: FOUR.transpose(1, 0, 2),
    6: np.rot90(FOUR, 1), 7: np.rot90(FOUR, 2).transpose(1, 0, 2), 8: np.rot90(FOUR, -1),
  }.get(orientation, FOUR)  # fmt: skip
  exif = Image.Exif()
  exif[0x0112] = orientation
  Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a.{suffix}", exif=exif)
  np.testing.assert_array_equal(decode.square(tmp_path / f"a.{suffix}", 16), FOUR)


def test_a_broken_exif_block_does_not_matter(tmp_path):
  Image.fromarray(FOUR).save(tmp_path / "a.jpg", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
  assert decode.problem(tmp_path / "a.jpg") == ""


def test_images_are_squashed_to_a_square(tmp_path):
  image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
  image.save(tmp_path / "a.png")
  for interpolation, resample in decode.INTERPOLATIONS.items():
    if resample is None:
      expected = resize.bilinear(np.asarray(image), 16, 16)
    else:
      expected = np.asarray(image.resize((16, 16), resample))
    found = decode.square(tmp_path / "a.png", 16, interpolation)
    np.testing.assert_array_equal(found, expected)


def test_large_images_take_turns_and_are_read_alike(tmp_path):
  image = Image.new("RGB", (4100, 4000), RED)
  image.paste(BLUE, (0, 0, 2050, 4000))
  image.save(tmp_path / "a.png", compress_level=1)
  assert image.width * image.height > decode._MANY_PIXELS
  images = lazy.from_files([tmp_path / "a.png"] * 3, 4)
  expected = np.asarray(image.resize((4, 4), Image.Resampling.BICUBIC))
  np.testing.assert_array_equal(images[:], np.stack([expected] * 3))
  (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:20_000])
  with pytest.raises(errors.BrokenImageError, match=r"^[^:]*a\.png: [^:]*$"):
    images[:]
