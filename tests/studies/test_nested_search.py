"""What studies take from the records of their searches."""

from subtune_jax.studies import nested_search


def test_a_set_that_diverged_has_no_score():
  score = {"low": 0.4, "high": 0.6, "by_fold": [0.5], "mean": 0.5}
  record = {
    "units": [{"name": "early"}, {"name": "late"}],
    "sets": [
      {"units": ["early"], **score, "mean": 0.0, "diverged": True},
      {"units": ["late"], **score},
      {"units": [], **score, "mean": 0.0, "diverged": True},
    ],
  }
  assert [row["unit"] for row in nested_search.profile_rows(record)] == ["late"]
  assert nested_search.set_row(record, ()) is None
  assert nested_search.set_row(record, ("late",))["mean"] == 0.5
