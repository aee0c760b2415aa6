"""Pictures without a label: which are asked for, and how the labels come back."""

import csv
import re

import numpy as np
from PIL import Image
import pytest

from subtune_jax import acquisition, data, label
from subtune_jax.data import folder
from subtune_jax.deploy import labelling
from tests import deploy_network


def picture(path, seed):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
  Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
  """A folder of 12 pictures, one of them broken."""
  for n in range(11):
    picture(tmp_path / "new" / f"{n:02}.png", 1000 + n)
  (tmp_path / "new" / "zz.png").write_bytes(b"no picture")
  return tmp_path / "new"


@pytest.fixture
def parts(tmp_path):
  """A training set of folders, 10 pictures of each class."""
  for number, name in enumerate(deploy_network.CLASSES):
    for n in range(10):
      picture(tmp_path / "parts" / name / f"{n}.png", 100 * number + n)
  return tmp_path / "parts"


def table(path):
  with open(path, newline="") as stream:
    return list(csv.DictReader(stream))


def fill(path, labels):
  """Writes labels into the column, in the rows' order."""
  rows = table(path)
  with open(path, "w", newline="") as stream:
    writer = csv.DictWriter(stream, labelling.COLUMNS)
    writer.writeheader()
    for row, own in zip(rows, labels, strict=True):
      writer.writerow(row | {"label": own})


@pytest.mark.parametrize("rule", ["margin", "badge"])
def test_the_table_has_what_the_rule_wants_of_the_network(
  rule, saved, trained, photos, tmp_path, capsys
):
  out = tmp_path / "to_label.csv"
  code, text, error = deploy_network.run(
    label.main, capsys, saved, photos, f"--out={out}", "--count=5", f"--rule={rule}"
  )
  assert (code, error) == (0, "")
  assert "5 of 12 pictures to label" in text
  assert "1 cannot be read" in text
  read = sorted(photos.glob("[0-9]*.png"))
  answers = trained.predict(list(map(str, read)))
  features = trained.features(list(map(str, read)))
  pool = acquisition.Pool(len(read), answers.probabilities.astype(float), features)
  wanted = acquisition.RULES[rule].choose(pool, 5).places
  rows = table(out)
  assert [row["file"] for row in rows] == [f"new/{read[place].name}" for place in wanted]
  assert [row["prediction"] for row in rows] == answers.labels[wanted].tolist()
  assert {row["label"] for row in rows} == {""}
  page = out.with_suffix(".html").read_text()
  assert "zz.png" in page
  assert page.count("<img") == 1


def test_labels_come_back_as_training_images_and_nothing_else_moves(
  saved, photos, parts, tmp_path, capsys
):
  before = {s: data.load(f"folder:{parts}", s, 16) for s in ("train", "validation", "test")}
  out = tmp_path / "to_label.csv"
  deploy_network.run(label.main, capsys, saved, photos, f"--out={out}", "--count=4")
  fill(out, ["ok", "", "=odd", "ok"])
  code, text, error = deploy_network.run(label.main, capsys, out, f"--into=folder:{parts}")
  assert (code, error) == (0, "")
  assert "3 training images added (1 =odd, 2 ok); 1 row without a label left out" in text
  after = {s: data.load(f"folder:{parts}", s, 16) for s in before}
  for split in ("validation", "test"):
    assert after[split].fingerprint() == before[split].fingerprint()
  old = len(before["train"])
  assert np.array_equal(after["train"].images[:old], before["train"].images)
  assert after["train"].class_names == before["train"].class_names
  names = [after["train"].class_names[own] for own in after["train"].labels[old:]]
  assert names == ["ok", "=odd", "ok"]
  wanted = [row["file"].removeprefix("new/") for row in table(out) if row["label"]]
  assert after["train"].ids[old:].tolist() == [f"labelled/{name}" for name in wanted]
  listed = (parts / "labels.csv").read_text()
  (tmp_path / "more.csv").write_text("file,label\nparts/labelled/" + wanted[0] + ",ok\n")
  code, _, error = deploy_network.run(label.main, capsys, tmp_path / "more.csv", f"--into={parts}")
  assert code == 2
  assert "has a label in" in error
  code, _, error = deploy_network.run(label.main, capsys, out, f"--into={parts}")  # once more
  assert code == 2
  assert f"already, as labelled/{wanted[0]}" in error
  assert (parts / "labels.csv").read_text() == listed


def test_groups_and_given_splits_stay(parts, tmp_path):
  files = sorted(str(p.relative_to(parts)) for p in parts.rglob("*.png"))
  rows = [f'"{f}","{f.split("/")[0]}",{"test" if i % 2 else "train"},g{i // 2}'
          for i, f in enumerate(files)]  # fmt: skip
  (parts / "labels.csv").write_text("\n".join(["file,label,split,group", *rows]) + "\n")
  picture(tmp_path / "0.png", 2007)
  labelling.add(labelling.Answers([tmp_path / "0.png"], ["ok"], 0), str(parts))
  lines = list(csv.reader((parts / "labels.csv").open()))
  assert lines[1:-1] == list(csv.reader(rows))
  assert lines[-1] == ["labelled/0.png", "ok", "train", "labelled/0.png"]


def test_pictures_of_one_name_do_not_replace_each_other(parts, tmp_path):
  answers = []
  for n in range(2):
    picture(tmp_path / f"day{n}" / "1.png", 2000 + n)
    answers.append(tmp_path / f"day{n}" / "1.png")
  labelling.add(labelling.Answers(answers, ["ok", "ok"], 0), str(parts))
  copies = sorted((parts / "labelled").iterdir())
  assert sorted(p.read_bytes() for p in copies) == sorted(p.read_bytes() for p in answers)


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("file,label\n", "has no label: fill in the column 'label'"),
    ("file,label\nnew/00.png,\n", "has no label"),
    ("file,class\nnew/00.png,ok\n", "Unknown column of .* 'class'"),
    ("file\nnew/00.png\n", "needed: file,label"),
    ("file,label\nnew/00.png,ok,more\n", "line 2: it has more or fewer values"),
    ("file,label\nnew/99.png,ok\n", "line 2: there is no picture .*99.png"),
    ("file,label\nnew/00.png,ok\n./new/00.png,ok\n", "line 3: './new/00.png' has a row before"),
    ("file,label\nnew/00.png,okk\n", "Unknown label for .* 'okk'.*Did you mean 'ok'.*new_classes"),
    (b"file,label\n\xff\xfe,ok\n", "is not a CSV file in UTF-8"),
  ],
)
def test_a_bad_table_is_one_error_and_nothing_is_written(
  text, said, photos, parts, tmp_path, capsys
):
  path = tmp_path / "labels_back.csv"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  code, _, error = deploy_network.run(label.main, capsys, path, f"--into={parts}")
  assert code == 2
  assert error.startswith("error: ")
  assert error.count("\n") == 1
  assert re.search(said, error), error
  assert not (parts / "labels.csv").exists()
  assert not (parts / "labelled").exists()


def test_a_new_class_is_taken_where_it_is_asked_for(photos, parts, tmp_path, capsys):
  path = tmp_path / "back.csv"
  path.write_text("file,label\nnew/00.png,crack\n")
  code, text, _ = deploy_network.run(label.main, capsys, path, f"--into={parts}", "--new_classes")
  assert code == 0
  assert "1 training image added (1 crack)" in text
  assert "crack" in data.load(f"folder:{parts}", "train", 16).class_names


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (("{saved}", "{photos}"), "--out=NAME.csv"),
    (("{saved}", "{photos}", "--out=a.txt"), "--out=NAME.csv"),
    (("{saved}", "{photos}", "--out=a.csv", "--rule=margins"), "Did you mean 'margin'"),
    (("{saved}", "{photos}", "--out=a.csv", "--count=0"), "count is 0; give at least 1"),
    (("{photos}", "{photos}", "--out=a.csv"), "config.json"),
    (("nothing.csv", "--into={photos}"), "there is no file nothing.csv"),
    (("{saved}", "{photos}", "--into=x"), "takes one CSV"),
  ],
)
def test_a_bad_command_is_one_error(arguments, said, saved, photos, capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  given = [each.format(saved=saved, photos=photos) for each in arguments]
  code, _, error = deploy_network.run(label.main, capsys, *given)
  assert code == 2
  assert error.startswith("error: ")
  assert error.count("\n") == 1
  assert said in error
  assert not (tmp_path / "a.csv").exists()


def test_splits_of_a_folder_are_those_it_loads(parts):
  listing = folder.layout.read(parts)
  for split in ("train", "validation", "test"):
    own = {f for f, s in zip(listing.files, folder.splits_of(listing), strict=True) if s == split}
    assert own == set(data.load(f"folder:{parts}", split, 16).ids.tolist())
