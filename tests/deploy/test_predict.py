"""`python -m subtune_jax.predict`: tables, pictures of all kinds, and what is refused."""

import csv
import functools
import io
import json
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
from PIL import Image
import pytest

from subtune_jax import predict
from subtune_jax.deploy import pictures
from tests import deploy_network

run = functools.partial(deploy_network.run, predict.main)


@pytest.fixture
def photos(tmp_path):
  """A folder with pictures, one in a folder of it, and what is passed over."""
  path = tmp_path / "photos"
  (path / "more" / ".hidden").mkdir(parents=True)
  rng = np.random.default_rng(0)
  for name in ("b.png", "a.JPG", "more/c.webp", "more/.hidden/d.png", ".e.png"):
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(path / name)
  (path / "notes.txt").write_text("no picture")
  return path


def test_a_csv_of_a_folder(trained, saved, photos, tmp_path, capsys):
  out = tmp_path / "out.csv"
  assert run(capsys, saved, photos, f"--out={out}", "--top_k=2", "--probabilities")[0] == 0
  rows = list(csv.DictReader(io.StringIO(out.read_text())))
  files = [str(photos / name) for name in ("a.JPG", "b.png", "more/c.webp")]
  assert [row["file"] for row in rows] == files
  answers = trained.predict(files)
  for row, label, own in zip(rows, answers.labels, answers.probabilities, strict=True):
    assert row["prediction"] == label
    order = np.argsort(-own)
    assert row["prediction_2"] == deploy_network.CLASSES[order[1]]
    assert np.float32(row["probability_2"]) == own[order[1]]  # to the last bit
    written = [np.float32(row[f"p({name})"]) for name in deploy_network.CLASSES]
    np.testing.assert_array_equal(written, own)
    assert row["error"] == ""


def test_jsonl(trained, saved, photos, tmp_path, capsys):
  out = tmp_path / "out.jsonl"
  (photos / "x.png").write_bytes(b"GIF89a")
  _, said, _ = run(capsys, saved, photos, f"--out={out}", "--top_k=3", "--probabilities")
  assert said == f"{out}: 4 pictures, 1 of them could not be read: see the column error\n"
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  assert rows[2] == {"file": str(photos / "x.png"), "error": "not an image of a known format"}
  own = trained.predict(photos / "b.png").probabilities[0]
  assert list(rows[1]["probabilities"].values()) == [float(p) for p in own]
  assert [each["probability"] for each in rows[1]["top"]] == sorted(map(float, own))[::-1]


def test_calibrated_probabilities(trained, saved, photos, tmp_path, capsys):
  out = tmp_path / "out.csv"
  run(capsys, saved, photos / "b.png", f"--out={out}", "--calibrate")
  (row,) = csv.DictReader(io.StringIO(out.read_text()))
  own = trained.predict(photos / "b.png", calibrate=True).probabilities.max()
  assert np.float32(row["probability"]) == own


def test_patterns_and_files_each_once(photos):
  found = pictures.find([f"{photos}/**/*.webp", str(photos / "b.png"), str(photos)])
  assert [os.path.relpath(f, photos) for f in found] == ["more/c.webp", "b.png", "a.JPG"]


def test_more_pictures_than_a_batch_in_their_order(trained, photos):
  image = Image.open(photos / "b.png")
  files = []
  for number in range(21):
    files.append(str(photos / f"{number}.png"))
    if number in (0, 9):
      open(files[-1], "w").close()
    else:
      image.rotate(15 * number).save(files[-1])
  found = list(pictures.answers(trained, files))
  assert [answer.file for answer in found] == files
  assert [bool(answer.error) for answer in found] == [n in (0, 9) for n in range(21)]
  wanted = trained.predict([f for n, f in enumerate(files) if n not in (0, 9)]).probabilities
  given = [answer.probabilities for answer in found if not answer.error]
  np.testing.assert_array_equal(given, wanted)


def _png(*chunks):
  def chunk(kind, data):
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

  return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def broken_pictures():
  """(name, bytes) of files that no network can see."""
  buffer = io.BytesIO()
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(
    buffer, "JPEG"
  )
  jpeg = buffer.getvalue()
  header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
  yield "empty.png", b""
  yield "text.jpg", b"hello"
  yield "html.jpg", b"<html><script>alert(1)</script></html>"
  yield "svg.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"
  yield "bomb.png", _png((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)))
  yield "zip.png", b"PK\x03\x04" + bytes(100)
  yield "pickle.png", b"\x80\x04cos\nsystem\n(S'touch /tmp/never'\ntR."
  yield "eps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
  yield "nul.png", bytes(1000)
  for size in range(2, len(jpeg) // 2, max(1, len(jpeg) // 60)):
    yield f"cut{size}.jpg", jpeg[:size]


def test_broken_pictures_are_rows(saved, tmp_path, capsys):
  names = []
  for name, data in broken_pictures():
    (tmp_path / name).write_bytes(data)
    names.append(name)
  (tmp_path / "folder.png").mkdir()
  (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
  os.mkfifo(tmp_path / "pipe.png")
  names += ["gone.png", "pipe.png"]
  assert len(names) > 30
  out = tmp_path / "out.csv"
  code, said, error = run(capsys, saved, *(tmp_path / n for n in names), f"--out={out}")
  assert (code, error) == (2, "error: no picture could be read\n")
  rows = list(csv.DictReader(io.StringIO(out.read_text())))
  assert [os.path.basename(row["file"]) for row in rows] == names
  assert all(row["error"] and not row["prediction"] for row in rows)
  assert f"{len(names)} of them could not be read" in said


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["{saved}", "{photos}"], "the following arguments are required: --out"),
    (["{saved}", "--out=x.csv"], "the following arguments are required: pictures"),
    (["{photos}", "{photos}", "--out=x.csv"], "config.json cannot be read"),
    (["{photos}/no", "{photos}", "--out=x.csv"], "there is no folder"),
    (["{saved}", "{photos}/no.png", "--out=x.csv"], "no.png' is no picture"),
    (["{saved}", "{photos}/*.bmp", "--out=x.csv"], "no pattern that matches one"),
    (["{saved}", "{photos}/more/.hidden/..x", "--out=x.csv"], "is no picture"),
    (["{saved}", "{photos}", "--out=x.xlsx"], "'.xlsx'. Allowed: '.csv', '.jsonl'"),
    (["{saved}", "{photos}", "--out=no/such/x.csv"], "no/such"),
    (["{saved}", "{photos}", "--out=x.csv", "--top_k=0"], "top_k is 0; the network has 3"),
    (["{saved}", "{photos}", "--out=x.csv", "--top_k=4"], "top_k is 4; the network has 3"),
    (["{saved}", "{photos}", "--out=x.csv", "--batch_size=-1"], "batch_size is -1"),
    (["{saved}", "{photos}", "--out=x.csv", "--top=3"], "unrecognized arguments: --top=3"),
  ],
)
def test_bad_input_is_one_line_and_code_2(
  saved, photos, tmp_path, capsys, monkeypatch, arguments, said
):
  monkeypatch.chdir(tmp_path)
  filled = [each.format(saved=saved, photos=photos) for each in arguments]
  code, out, error = run(capsys, *filled)
  assert (code, out) == (2, "")
  assert error.startswith("error: ")
  assert error.count("\n") == 1
  assert said in error
  assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]


def test_a_table_that_is_there_stays_until_the_new_one_is_whole(
  saved, photos, tmp_path, capsys, monkeypatch
):
  out = tmp_path / "out.csv"
  out.write_text("old")
  monkeypatch.setattr(pictures, "_read", lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    run(capsys, saved, photos, f"--out={out}")
  assert out.read_text() == "old"


def test_as_a_command_without_tensorflow_and_ml_collections(saved, photos, tmp_path):
  blocked = "import sys; sys.modules.update(dict.fromkeys(('tensorflow', 'clu', 'ml_collections')))"
  code = f"{blocked}; from subtune_jax import predict; predict.main()"
  arguments = [str(saved), str(photos), f"--out={tmp_path / 'x.csv'}"]
  done = subprocess.run(
    [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == f"{tmp_path / 'x.csv'}: 3 pictures\n"
