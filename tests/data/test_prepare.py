"""The command that prepares data sets: names, sizes, and what it refuses before it downloads."""

import re

import pytest

from subtune_jax.data import errors, prepare, shifts, tfds_source, vtab


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

  def never():
    raise AssertionError("TFDS was opened")

  monkeypatch.setattr(tfds_source, "import_tfds", never)
  return tmp_path


def test_the_list_has_every_tfds_set_with_size_and_kind(capsys):
  assert prepare.main(["--list"]) == 0
  lines = capsys.readouterr().out.splitlines()
  rows = {line.split()[0]: re.split("  +", line) for line in lines[1:]}
  assert set(rows) == set(vtab.SOURCES) | set(shifts.SOURCES)
  assert rows["vtab/dtd"] == ["vtab/dtd", "625 MB", "no", "no"]
  assert rows["vtab/retinopathy"] == ["vtab/retinopathy", "about 90 GB", "yes", "no", "cv2"]
  assert rows["imagenet"][2] == "yes"


def test_the_list_says_what_is_prepared(capsys):
  folder = vtab.SOURCES["vtab/dtd"].path
  folder.mkdir(parents=True)
  (folder / "dataset_info.json").write_text("{}")
  prepare.prepare("vtab/dtd")  # Nothing to do.
  assert prepare.main(["--list"]) == 0
  [line] = [x for x in capsys.readouterr().out.splitlines() if x.startswith("vtab/dtd ")]
  assert re.split("  +", line)[3] == "yes"


@pytest.mark.parametrize("arguments", [[], ["vtab/dmlb"], ["vtab/dtd", "nothing"]])
def test_a_wrong_command_line_stops_with_the_names(arguments, capsys):
  with pytest.raises(SystemExit) as stop:
    prepare.main(arguments)
  assert stop.value.code == 2
  message = capsys.readouterr().err
  assert "--list" in message if not arguments else "Unknown data set" in message
  if arguments == ["vtab/dmlb"]:
    assert "'vtab/dmlab'" in message


def test_files_fetched_by_hand_are_asked_for_first(data_dir):
  with pytest.raises(errors.MissingDataError) as error:
    prepare.prepare("vtab/resisc45")
  assert str(data_dir / "downloads" / "manual") in str(error.value)
  assert prepare.main(["vtab/resisc45"]) == 1


def test_missing_modules_are_named_first(monkeypatch):
  monkeypatch.setattr(tfds_source.Source, "missing_modules", lambda self: ["cv2", "h5py"])
  with pytest.raises(ModuleNotFoundError, match="pip install opencv-python-headless h5py"):
    prepare.prepare("vtab/kitti_distance")


def test_prepares_the_version_in_the_table_without_google_storage(monkeypatch, data_dir):
  calls = []

  class Builder:
    def download_and_prepare(self, download_config):
      calls.append(download_config)

  class Tfds:
    class download:
      @staticmethod
      def DownloadConfig(**options):
        return options

    @staticmethod
    def builder(name, **options):
      calls.append((name, options))
      return Builder()

  monkeypatch.setattr(tfds_source, "import_tfds", lambda: Tfds)
  assert prepare.main(["vtab/pets"]) == 0
  assert calls == [
    ("oxford_iiit_pet:4.0.0", {"data_dir": data_dir, "try_gcs": False}),
    {"manual_dir": data_dir / "downloads" / "manual", "try_download_gcs": False},
  ]
