"""Sections that the pages of several studies show: how the run was made, settings, licences."""

from collections.abc import Mapping
import pathlib
from typing import Any

from subtune_jax import files
from subtune_jax.report import document, html
from subtune_jax.report.document import Cell

FactRow = tuple[str, Cell | str | list[Cell | str]]


def run_rows(record: Mapping[str, Any]) -> list[FactRow]:
  """How a run was made: command, date, versions, devices."""
  return [
    ("Command", Cell(record["command"], code=True)),
    ("Written", record["created"]),
    ("Versions", ", ".join(f"{k} {v}" for k, v in record["versions"].items())),
    ("Devices", record["devices"]),
  ]


def backbone_rows(backbone: Mapping[str, Any]) -> list[FactRow]:
  """The backbone and its weights."""
  size = f"{backbone['num_params']:,} parameters, {backbone['image_size']} px"
  digest = Cell(f"SHA-256 {backbone['sha256']}", code=True)
  return [
    ("Backbone", f"{backbone['name']}, {size}"),
    ("Weights", [backbone["weights"], digest]),
  ]


def settings(config: Mapping[str, Any]) -> document.Section:
  """The fields of a config, without those of methods that did not run."""
  ran = {"source", "sweep", *config.get("methods", ())}
  used = {
    name: own
    for name, own in config.items()
    if name in ran or not (isinstance(own, Mapping) and {"learning_rates", "l2"} & set(own))
  }
  rows = [
    (Cell(key, code=True), Cell(str(value), code=True))
    for key, value in files.flatten(used).items()
  ]
  return document.Section("Settings", [document.Facts(rows)], page_only=True)


def attribution(value: Any) -> document.Section:
  """Licences and sources of the data: a text, a list of texts, or one text per name."""
  if isinstance(value, Mapping):
    value = [f"{name}: {text}" for name, text in value.items()]
  texts = [value] if isinstance(value, str) else value or []
  return document.Section(
    "Data and licences", [document.Text(text) for text in texts], page_only=True
  )


def report_link(text: str, workdir: pathlib.Path, folder: str) -> Cell:
  """A name that leads to the report in WORKDIR/FOLDER, if that is there."""
  link = f"{folder}/{html.PAGE}"
  return Cell(text, link=link if (workdir / link).is_file() else "")


def what_intervals_mean(text: str) -> document.Section:
  return document.Section("What the intervals mean", [document.Text(text)], level=3, folded=True)
