"""The store of finished trainings, alone and shared."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from subtune_jax.search import store

ARRAYS = {"logits": np.ones((2, 3), np.float32), "rows": np.arange(2)}


def test_rows_and_logits_come_back(tmp_path):
  made = store.Store(tmp_path)
  made.add({"key": "k", "accuracy": 0.5}, ARRAYS)
  again = store.Store(tmp_path)
  assert len(again) == 1
  assert again.get("k") == {"key": "k", "accuracy": 0.5}
  assert again.get("other") is None
  assert np.array_equal(again.logits("k")["logits"], ARRAYS["logits"])


def test_missing_logits_are_named(tmp_path):
  made = store.Store(tmp_path)
  made.add({"key": "k"}, ARRAYS)
  (tmp_path / "logits/k.npz").write_bytes(b"broken")
  with pytest.raises(ValueError, match=r"k\.npz cannot be read .* remove the line of k"):
    made.logits("k")


def hold(folder, ready):
  with store.Store(folder).claim("k") as mine:
    assert mine
    ready.set()
    time.sleep(60)


def test_a_claim_is_held_by_one_process_and_ends_with_it(tmp_path):
  context = multiprocessing.get_context("spawn")
  ready = context.Event()
  holder = context.Process(target=hold, args=(tmp_path, ready))
  holder.start()
  try:
    assert ready.wait(60)
    made = store.Store(tmp_path)
    with made.claim("k") as mine:
      assert not mine
    with made.claim("other") as mine:
      assert mine
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with made.claim("k") as mine:
      assert mine
  finally:
    holder.kill()


def test_a_claim_sees_what_another_process_has_finished(tmp_path):
  one, other = store.Store(tmp_path), store.Store(tmp_path)
  one.add({"key": "k"}, ARRAYS)
  assert other.get("k") is None
  with other.claim("k") as mine:
    assert not mine
  assert other.get("k") == {"key": "k"}


def test_lines_of_an_older_version_are_kept_and_not_read(tmp_path, caplog):
  old = '{"key": "k", "accuracy": 0.5}\n'
  (tmp_path / "ledger.jsonl").write_text(old)
  made = store.Store(tmp_path)
  assert len(made) == 0
  assert made.get("k") is None
  assert "1 lines have keys of another version than 2; these trainings are done again" in (
    caplog.text
  )
  with made.claim("k") as mine:
    assert mine
  made.add({"key": "k", "accuracy": 0.75}, ARRAYS)
  assert store.Store(tmp_path).get("k") == {"key": "k", "accuracy": 0.75}
  assert (tmp_path / "ledger.jsonl").read_text().startswith(old)
