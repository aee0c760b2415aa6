"""Records of every study: their kind and version, and errors that name file, field and value."""

import importlib
import json
import pathlib
from typing import NotRequired, TypedDict

import pytest

from subtune_jax.studies import fields
from tests.report import fake_run, fake_search

STUDIES = sorted(p.parent.name for p in pathlib.Path(fields.__file__).parent.glob("*/record.py"))
FILE = "results.json"


class Part(TypedDict):
  names: list[str]
  share: fields.Fraction | None


class Whole(TypedDict):
  parts: dict[str, list[Part]]
  ends: NotRequired[fields.Ends]
  count: int
  text: NotRequired[str | list[str]]


def whole(**changes):
  return {"parts": {"a/b": [{"names": ["x"], "share": None}]}, "count": 1} | changes


def part(**changes):
  return whole(parts={"other": [], "a/b": [{"names": ["x"], "share": 1} | changes]})


def record_of(kind: str, tmp_path) -> dict:
  """A record in `tmp_path`, of a comparison but for its kind."""
  record = fake_run.write(tmp_path, num_test=20, num_images=1) | {"kind": kind}
  (tmp_path / FILE).write_text(json.dumps(record))
  return record


def page_of(study: str):
  return importlib.import_module(f"subtune_jax.studies.{study}.page")


@pytest.mark.parametrize(
  "value", [whole(), whole(ends=[0, None]), whole(more=3), part(share=0.5), part(names=[])]
)
def test_what_is_declared_passes(value):
  fields.check(value, Whole, "FILE")


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ([1], "FILE is [1], it has to be `object`."),
    ({"count": 1}, "FILE lacks parts; it has count. Is it the record of a subtune_jax run of this"),
    (whole(count=True), "FILE: count is True, it has to be `int`."),
    (whole(count="1"), "FILE: count is '1', it has to be `int`."),
    (whole(count=1.5), "FILE: count is 1.5, it has to be `int`."),
    (whole(ends=[1]), "FILE: ends is [1], it has to be `array` of length >= 2."),
    (part(names=["x", 3]), "FILE: parts.a/b[0].names[1] is 3, it has to be `str`."),
    (part(share=1.5), "FILE: parts.a/b[0].share is 1.5, it has to be `float` <= 1.0."),
    (part(share=float("nan")), "FILE: parts.a/b[0].share is nan, it has to be `float` >= 0.0."),
    (whole(text=["x", 1]), "FILE: text is ['x', 1], Expected `str`, got `int` - at `$[1]`."),
    (whole(parts={"a": [{}]}), "FILE: parts.a[0] lacks names, share; it has nothing."),
  ],
)
def test_an_error_names_file_field_value_and_what_is_allowed(value, message):
  with pytest.raises(ValueError) as caught:
    fields.check(value, Whole, "FILE")
  assert str(caught.value).startswith(message)


@pytest.mark.parametrize("study", STUDIES)
def test_a_page_refuses_the_record_of_another_study(study, tmp_path):
  other = "vtab" if study != "vtab" else "search"
  record_of(other, tmp_path)
  with pytest.raises(ValueError, match=rf"{FILE}: kind is '{other}', wanted .*'{study}'"):
    page_of(study).write_report(tmp_path)


@pytest.mark.parametrize("study", STUDIES)
def test_a_page_refuses_a_newer_record(study, tmp_path):
  record = record_of(study, tmp_path) | {"record_version": fields.VERSION + 1}
  (tmp_path / FILE).write_text(json.dumps(record))
  with pytest.raises(ValueError, match=rf"{FILE}: record_version is {fields.VERSION + 1}, .*up to"):
    page_of(study).write_report(tmp_path)


@pytest.mark.parametrize("study", STUDIES)
def test_a_run_says_its_study_and_the_version(study):
  config = importlib.import_module(f"subtune_jax.studies.{study}.config").default()
  assert fields.header(config, "the command") == {
    "kind": study, "record_version": fields.VERSION, "name": config.name, "title": config.title,
    "command": "the command",
  }  # fmt: skip


@pytest.mark.parametrize("version", [True, "1", None])
def test_a_version_is_a_number(version, tmp_path):
  (tmp_path / FILE).write_text(json.dumps({"record_version": version}))
  with pytest.raises(ValueError, match=f"record_version is {version!r}, it has to be `int`"):
    fields.read(tmp_path)


@pytest.mark.parametrize(
  ("record", "kind"),
  [
    ({"kind": "search", "trainings": []}, "search"),
    ({"methods": [], "trainings": [], "robustness": {}}, "robustness"),
    ({"holistic": {}}, "holistic_transfer"),
    ({"tasks": []}, "vtab"),
    ({"kind": "sequence", "tasks": []}, "sequence"),
    ({"methods": [], "trainings": []}, "compare"),
    ({"accuracy": 1}, None),
  ],
)
def test_older_records_are_told_by_a_field(record, kind):
  assert fields.kind_of(record) == kind


@pytest.mark.parametrize("study", ["search", "robustness"])
def test_an_older_comparison_is_no_other_study(study, tmp_path):
  assert "kind" not in fake_run.write(tmp_path, num_test=20, num_images=1)
  with pytest.raises(ValueError, match=f"{FILE}: kind is 'compare', wanted '{study}'"):
    page_of(study).write_report(tmp_path)


@pytest.mark.parametrize("version", [{}, {"record_version": 0}, {"record_version": fields.VERSION}])
def test_a_search_of_each_version_is_read_as_it_was_written(version, tmp_path):
  record = fake_search.search("resnet26", kinds=("profile",)) | version | {"of_later": [1]}
  fake_search.write(tmp_path, record)
  found = importlib.import_module("subtune_jax.studies.search.record").load(tmp_path)
  assert found == record
