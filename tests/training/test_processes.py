"""Trainings in several processes on this machine are those of one process."""

import json
import pathlib

import jax
import numpy as np
import pytest

from subtune_jax import methods, processes
from subtune_jax.data import lazy
from subtune_jax.training import batches, loop
from subtune_jax.training import mesh as mesh_lib
from tests import hosts, tiny

N = 24


class Counted(lazy.LazyImages):
  """Lazy images that note which rows are read."""

  def __init__(self, images, read):
    def look(row):
      read.append(int(row))
      return images[row]

    super().__init__(range(len(images)), look, images.shape[1], int)


def fits(read: list[int]) -> dict[str, list[float]]:
  """Losses of a training from a stream, and of a probe."""
  model, variables = tiny.make()
  train, validation = tiny.examples(N), tiny.examples(20, seed=1)
  engine = tiny.engine(model, mesh=mesh_lib.make_mesh())
  ft = methods.full_fine_tuning(0.05, epochs=2, optimizer="sgd", schedule="constant")
  found = {}

  def run(name, method, examples):
    result = loop.fit(engine, variables, method, examples, validation)
    rows = result.history
    found[name] = [row[k] for row in rows for k in ("train_loss", "validation_loss")]

  run("streamed", ft, loop.Examples(Counted(train.images, read), train.labels))
  run("probe", methods.linear_probing(l2=(0.1, 0.01)), train)
  return found


def test_two_processes_train_as_one_does_and_read_each_image_once(tmp_path, monkeypatch):
  monkeypatch.setenv("OWN_FOLDER", str(tmp_path))
  script = str(pathlib.Path(__file__).with_name("fit_in_processes.py"))
  codes = hosts.finish(hosts.start([script], 2, 2, tmp_path), 240)
  assert codes == [0, 0], (tmp_path / "0.err").read_text() + (tmp_path / "1.err").read_text()
  said = [
    json.loads((tmp_path / f"{i}.out").read_text().split("SAID ")[1].splitlines()[0])
    for i in range(2)
  ]
  alone = fits([])
  for own in said:
    assert own["devices"] == [4, 2]
    assert own["agreed"] == {"from": 0}
    assert own["any"] == [True, False]
    assert own["error"] == "the disk is full"
    for name, losses in alone.items():
      np.testing.assert_allclose(own["fits"][name], losses, rtol=2e-5, err_msg=name)
  # 24 images in 3 batches of 8, two epochs: each once an epoch, half of them by each process. The
  # first batch is read once more, to compile with.
  assert said[0]["fits"] == said[1]["fits"]
  counts = [np.bincount(own["read"], minlength=N) for own in said]
  both = counts[0] + counts[1]
  assert sum(both) == 2 * N + 8
  assert set(both) == {2, 3}
  assert sum(counts[0]) == sum(counts[1])
  assert sorted(p.name for p in tmp_path.glob("by*")) == ["by0"]


def test_a_batch_takes_the_rows_that_it_names():
  images = tiny.examples(N).images
  read: list[int] = []
  source = batches.choose(Counted(images, read), np.arange(N), 1 << 30)
  order = np.array([3, 3, 5, 0, 3, 7, 1, 2])
  batch = batches.one(source, order, mesh_lib.make_mesh())
  np.testing.assert_array_equal(batch["x"], images[order])
  np.testing.assert_array_equal(batch["labels"], order)
  assert sorted(read) == [0, 1, 2, 3, 5, 7]
  assert len(batch["x"].sharding.device_set) == len(jax.devices()) == 4


@pytest.mark.parametrize(("arguments", "message"), [
  (("auto", 2, None), "coordinator is 'auto' and {'num_processes': 2"),
  (("localhost", 2, 0), "coordinator is 'localhost'"),
  (("localhost:1", 2, 2), "give HOST:PORT of the first process"),
  (("localhost:1", None, 0), "give HOST:PORT of the first process"),
])  # fmt: skip
def test_bad_arguments_are_one_error(arguments, message):
  with pytest.raises(ValueError) as error:
    processes.start(*arguments)
  assert message in str(error.value)


def test_a_wish_to_stop_waits_for_the_end(monkeypatch):
  monkeypatch.setattr(processes, "_asked", False)
  with processes.postponing():
    assert not processes.asked_to_stop()
  assert not processes.ask_to_stop()  # nothing looks at it later
  with pytest.raises(processes.Stopped), processes.postponing():
    assert processes.ask_to_stop()
