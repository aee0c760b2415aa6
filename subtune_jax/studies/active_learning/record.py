"""The record of a study of active learning: read and checked for its page."""

import os
from typing import Any

from subtune_jax.studies import fields
from subtune_jax.studies.search import checks

Row = checks.Row


def load(workdir: str | os.PathLike) -> dict[str, Any]:
  """The record of a finished study; see `search.checks.load`."""
  return checks.load(workdir, check)


def check(record: Any, where: str = "record") -> None:
  """Raises ValueError unless `record` is a whole one of this study."""
  checks.check_header(record, checks.ACTIVE_LEARNING, where)
  data = {"pool": str, "num_pool": int, "num_test": int, "class_names": list}
  fields.check_fields(record["data"], data, f"{where}: data")
  wanted = {"totals": list, "seeds": list, "rules": dict, "methods": list, "chose": list}
  fields.check_fields(record, wanted, where)

  def check_rule(row: Any, place: str) -> None:
    fields.check_fields(row, {"rule": str, "points": list, "saved": (dict, type(None))}, place)
    fields.check_one_of(row["rule"], list(record["rules"]), f"{place}: rule")
    checks.check_list(row["points"], f"{place}: points", checks.check_estimate, least=2)
    if [point.get("total") for point in row["points"]] != record["totals"]:
      raise ValueError(f"{place}: points are not at the totals {record['totals']}.")

  def check_method(row: Any, place: str) -> None:
    fields.check_fields(row, {"name": str, "title": str, "rules": list}, place)
    checks.check_list(row["rules"], f"{place}: rules", check_rule, least=1)

  checks.check_list(record["methods"], f"{where}: methods", check_method, least=1)
