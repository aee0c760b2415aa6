"""A search of the kind "predicted": nothing is trained unless it is asked for."""

import io
import json

import jax
import numpy as np
import pytest

from subtune_jax.data import registry
from subtune_jax.search import norm_statistics
from subtune_jax.studies.search import page, predicted_page
from subtune_jax.studies.search import record as search_records
from tests.search import small
from tests.studies import small_search


@pytest.fixture(scope="module", autouse=True)
def surroundings():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(registry, "_REGISTERED", {})
    yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("predicted") / "run"
  stream = io.StringIO()
  made = small_search.config(kinds=("predicted",), probes=1, final=False)
  return folder, small_search.run(folder, made, stream), stream.getvalue()


def test_nothing_is_trained_and_a_set_is_chosen(finished):
  folder, record, text = finished
  search_records.check(record)
  assert search_records.load(folder)["predicted"] == json.loads(json.dumps(record["predicted"]))
  assert record["sets"] == []
  assert record["cost"]["trainings"] == 0
  assert not (folder / "search/ledger.jsonl").exists()
  found = record["predicted"]
  assert record["chosen"] == found["chosen"]
  sets = {tuple(s["units"]): s for s in found["sets"]}
  assert {(), ("early",), ("mid",), ("late",), ("early", "mid"), ("mid", "late")} <= set(sets)
  assert all(len(s["by_fold"]) == 3 and s["trainings"] == 0 for s in found["sets"])
  assert "nothing is trained" in text
  assert "Predicted without training: " in text
  blocks = [b for unit in record["units"] if unit["name"] in found["chosen"]
            for b in unit["blocks"]]  # fmt: skip
  listed = ",".join(f"'{block}'" for block in blocks)
  assert not blocks or f'--config.subtuning.blocks="({listed},)"' in " ".join(text.split())


@pytest.mark.slow
def test_the_kernels_are_kept_and_another_number_of_probes_is_another_file(finished, tmp_path):
  folder, record, _ = finished
  (kept,) = (folder / "search/kernels").iterdir()
  made = small_search.config(
    kinds=("profile", "predicted"), probes=1, propose=2, final=False, references=False,
    store=str(folder / "search"),
  )  # fmt: skip
  raced = small_search.run(tmp_path / "raced", made)
  assert list((folder / "search/kernels").iterdir()) == [kept]
  assert raced["predicted"]["sets"] == record["predicted"]["sets"]
  (search,) = [s for s in raced["searches"] if s["kind"] == "predicted"]
  assert len(search["proposed"]) == 2
  trained = {tuple(s["units"]) for s in raced["sets"]}
  assert set(map(tuple, search["proposed"])) <= trained
  best = sorted((s for s in record["predicted"]["sets"] if s["units"]), key=lambda s: -s["mean"])
  assert {s["mean"] for s in best[:2]} == {
    s["mean"] for s in best if s["units"] in search["proposed"]
  }
  assert set(predicted_page.figures(raced)) == {"predicted", "predicted_trained"}
  names = [figure.name for figure in page.report(raced, tmp_path / "raced").figures]
  assert names.index("profile") < names.index("predicted")


def test_the_page_begins_with_the_predicted_set(finished):
  folder, record, _ = finished
  document = page.report(record, folder)
  assert document.parts[0].text.startswith("Predicted without training: ")
  assert [figure.name for figure in document.figures] == ["predicted"]


def test_a_record_that_contradicts_itself_is_refused(finished):
  record = json.loads(json.dumps(finished[1]))
  record["predicted"]["sets"] = [s for s in record["predicted"]["sets"] if s["units"]]
  with pytest.raises(ValueError, match="predicted: sets lack"):
    search_records.check(record)
  record = json.loads(json.dumps(finished[1]))
  record["predicted"] = None
  with pytest.raises(ValueError, match="at least one set is needed"):
    search_records.check(record)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"propose": 3}, "propose is 3, and search.kinds"),
    ({"kinds": ("predicted",), "probes": 0}, "search.probes is 0"),
    ({"kinds": ("predicted",), "eta": (0.0,)}, "search.eta is"),
    ({"kinds": ("predicted",), "statistics": "batch"}, "'batch'"),
  ],
)
def test_bad_input_is_one_error(tmp_path, fields, message):
  with pytest.raises(ValueError, match=message):
    small_search.run(tmp_path / "run", small_search.config(**fields))


def test_statistics_of_the_images():
  net = small.model()
  given, images = small.variables(net), small.dataset().images
  found = norm_statistics.reestimate(small.engine(net), given, images, len(images))
  x = (images.astype(np.float32) - 127) / 64  # that of tiny.PREPROCESSING
  _, changed = net.clone(norm_momentum=0.0).apply(
    given, x, stop="head", train_blocks=frozenset(net.block_names), mutable=["batch_stats"]
  )
  stem = changed["batch_stats"][net.block_names[0]]
  for a, b in zip(
    *map(jax.tree.leaves, (found["batch_stats"][net.block_names[0]], stem)), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
  assert found["params"] is given["params"]


def test_features_of_a_candidate_have_its_own_statistics_alone():
  net = small.model()
  given, images = small.variables(net), small.dataset().images
  network = small.problem(net).network
  found = norm_statistics.candidate_features(small.engine(net), given, images, network, len(images))
  x = (images.astype(np.float32) - 127) / 64
  for name in network.names:
    blocks = frozenset(network.units[name].blocks)
    wanted, _ = net.apply(given, x, stop="head", train_blocks=blocks, mutable=["batch_stats"])
    np.testing.assert_allclose(found[name], wanted, rtol=2e-3, atol=2e-3)
  plain = net.apply(given, x, stop="head")
  assert all(np.abs(found[name] - plain).max() > 0.01 for name in network.names)
