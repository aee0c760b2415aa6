"""The server: answers of the offline predict, limits, refusals, tasks that come and go."""

import base64
import io
import threading

import numpy as np
from PIL import Image
import pytest

pytest.importorskip("starlette", reason="pip install 'subtune-jax[serve]'")
pytest.importorskip("python_multipart", reason="pip install 'subtune-jax[serve]'")
pytest.importorskip("prometheus_client", reason="pip install 'subtune-jax[serve]'")
from starlette import testclient

from subtune_jax import multitask, serve
from subtune_jax.serving import app as app_lib
from subtune_jax.serving import batcher as batcher_lib
from tests.multitask import made

LIMITS = batcher_lib.Limits(batch=2, delay=0.0, queue=8)
TOKEN = "a secret of the tests"


def png(seed=0, size=(40, 30), kind="PNG"):
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, kind)
  return data.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  base, root = made.backbone(made.RESNET), tmp_path_factory.mktemp("folders")
  return {
    name: made.write(root / name, made.RESNET, base, blocks, seed, classes)
    for name, blocks, seed, classes in (
      ("a", ("block3/unit1",), 1, 3), ("b", (), 2, 4), ("c", ("block2/unit2",), 3, 5),
    )
  }  # fmt: skip


@pytest.fixture(scope="module")
def network(folders):
  return multitask.MultiTask({name: folders[name] for name in "ab"})


@pytest.fixture(scope="module")
def client(network):
  options = app_lib.Options(most_bytes=100_000, upload_seconds=1.0, admin_token=TOKEN)
  with testclient.TestClient(app_lib.make(network, LIMITS, options)) as client:
    yield client


def offline(network, data, tmp_path):
  path = tmp_path / "picture.png"
  path.write_bytes(data)
  return network.predict([path], batch_size=1)


def check(answer, wanted):
  assert list(answer) == list(wanted)
  for name, own in wanted.items():
    assert answer[name]["label"] == own.labels[0]
    found = answer[name]["probabilities"]
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert sorted(found.values(), reverse=True) == sorted(
      map(float, own.probabilities[0]), reverse=True
    )


def test_every_way_to_send_a_picture_gives_the_answers_of_predict(client, network, tmp_path):
  data = png()
  wanted = offline(network, data, tmp_path)
  text = base64.b64encode(data).decode()
  for reply in (
    client.post("/predict", files={"image": ("x.png", data)}),
    client.post("/predict", json={"image": text}),
    client.post("/predict", json={"images": [text]}),
    client.post("/predict", content=data, headers={"content-type": "image/png"}),
  ):
    assert reply.status_code == 200
    (answer,) = reply.json()["answers"]
    check(answer, wanted)
  for reply in (
    client.post("/predict?tasks=b", files={"image": ("x.png", data)}),
    client.post("/predict", json={"image": text, "tasks": ["b"]}),
    client.post("/predict", files={"image": ("x.png", data)}, data={"tasks": "b"}),
  ):
    (answer,) = reply.json()["answers"]
    check(answer, {"b": wanted["b"]})


def test_several_pictures_of_which_one_is_broken(client, network, tmp_path):
  files = [("image", ("1.png", png(1))), ("image", ("2.png", b"no picture")),
           ("image", ("3.jpg", png(3, kind="JPEG")))]  # fmt: skip
  reply = client.post("/predict", files=files)
  assert reply.status_code == 200
  first, broken, last = reply.json()["answers"]
  assert broken == {"error": "not an image of a known format"}
  assert first["a"]["label"] == offline(network, png(1), tmp_path)["a"].labels[0]
  assert set(last) == {"a", "b"}


def bomb():
  """A PNG whose header says 40,000 x 40,000 pixels."""
  data = bytearray(png())
  data[16:24] = (40_000).to_bytes(4, "big") * 2
  return bytes(data)


@pytest.mark.parametrize(
  ("request_", "code", "said"),
  [
    ({"files": {"image": ("x", b"")}}, 422, None),
    ({"files": {"image": ("x", png()[:-200])}}, 422, None),
    ({"files": {"image": ("x", bomb())}}, 422, None),
    ({"files": {"other": ("x", png())}}, 400, 'there is no picture; call it "image"'),
    ({"data": {"image": "text"}}, 415, "content type"),
    ({"files": {"image": (None, "text")}}, 400, "image is a text"),
    ({"content": b"--", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
    ({"files": {"image": ("x", b"x" * 200_000)}}, 413, "at most 100,000"),
    ({"files": [("image", ("x", png()))] * 17}, 413, "17 pictures; at most 16"),
    ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "no JSON"),
    ({"content": b"[" * 90_000, "headers": {"content-type": "application/json"}}, 400, "no JSON"),
    ({"json": ["x"]}, 400, "no JSON object"),
    ({"json": {"picture": "x"}}, 400, "unknown field 'picture'; allowed: image"),
    ({"json": {"image": "no base64!"}}, 400, "not base64"),
    ({"json": {"image": 5}}, 400, "list of strings"),
    ({"json": {"image": "", "tasks": "a"}}, 400, "tasks has to be a list"),
    ({"json": {"images": []}}, 400, "there is no picture"),
    ({"json": {"image": base64.b64encode(png()).decode(), "tasks": ["z"]}}, 404, "no task 'z'"),
  ],
)  # fmt: skip
def test_what_cannot_be_answered_is_one_error(client, request_, code, said):
  reply = client.post("/predict", **request_)
  assert reply.status_code == code, reply.text
  error = reply.json()["answers"][0]["error"] if said is None else reply.json()["error"]
  assert error
  assert "\n" not in error
  assert said is None or said in error
  assert client.post("/predict", files={"image": ("x.png", png())}).status_code == 200


def test_a_body_that_lies_about_its_length_or_does_not_come(client):
  def chunks():
    for _ in range(20):
      yield b"x" * 10_000

  reply = client.post("/predict", content=chunks(), headers={"content-type": "image/png"})
  assert reply.status_code == 413
  assert client.get("/predict").status_code == 405
  assert "error" in client.get("/nothing").json()


def test_what_is_there(client, network):
  assert client.get("/healthz").json() == {"status": "ok", "tasks": ["a", "b"]}
  assert client.get("/tasks").json()["class_names"]["b"] == ["class0", "class1", "class2", "class3"]
  page = client.get("/")
  assert "default-src 'none'" in page.headers["content-security-policy"]
  assert 'fetch("predict"' in page.text
  client.post("/predict", files={"image": ("x.png", png())})
  text = client.get("/metrics").text
  assert 'subtune_requests_total{code="200"}' in text
  assert "subtune_batch_pictures_count" in text


def test_tasks_come_and_go_while_it_runs(client, folders, network, tmp_path):
  headers = {"authorization": f"Bearer {TOKEN}"}
  before = client.post("/predict", files={"image": ("x.png", png())}).json()["answers"][0]
  assert client.put("/tasks/c", json={"folder": str(folders["c"])}).status_code == 401
  wrong = {"authorization": "Bearer wrong"}
  assert client.delete("/tasks/a", headers=wrong).status_code == 401
  reply = client.put("/tasks/c", json={"folder": str(folders["c"])}, headers=headers)
  assert list(reply.json()["class_names"]) == ["a", "b", "c"]
  after = client.post("/predict", files={"image": ("x.png", png())}).json()["answers"][0]
  assert {name: after[name] for name in "ab"} == before
  wanted = offline(network.added("c", folders["c"]), png(), tmp_path)
  check(after, wanted)
  for name, body, said in (
    ("c", {"folder": str(folders["c"])}, "there is a task 'c'"),
    ("d", {"folder": str(tmp_path / "none")}, "none"),
  ):
    reply = client.put(f"/tasks/{name}", json=body, headers=headers)
    assert reply.status_code == 400
    assert said in reply.json()["error"]
  assert client.delete("/tasks/c", headers=headers).status_code == 200
  assert client.get("/healthz").json()["tasks"] == ["a", "b"]


def test_nobody_changes_tasks_without_a_token(network):
  with testclient.TestClient(app_lib.make(network, LIMITS)) as client:
    assert client.delete("/tasks/a", headers={"authorization": "Bearer "}).status_code == 404


class Slow:
  """A network that answers when it is let."""

  image_size = 32

  def __init__(self, network):
    self._network, self.let, self.sizes = network, threading.Event(), []

  def __getattr__(self, name):
    return getattr(self._network, name)

  def apply(self, images):
    if images.any():
      self.let.wait(10)
      self.sizes.append(len(images))
    return self._network.apply(images)


def test_pictures_wait_within_bounds_and_run_together(network):
  slow, ran = Slow(network), []
  limits = batcher_lib.Limits(batch=4, delay=0.05, queue=5, seconds=30)
  batcher = batcher_lib.Batcher(slow, limits, ran.append)
  assert limits.sizes == (1, 2, 4)
  assert batcher_lib.Limits(batch=6).sizes == (1, 2, 4, 6)
  images = made.images(12)
  waiting = [batcher.submit(images[0])]
  while batcher.waiting:
    pass
  waiting += [batcher.submit(image) for image in images[1:6]]
  with pytest.raises(batcher_lib.Full):
    batcher.submit(images[6])
  waiting[2].cancel()
  slow.let.set()
  found = [own.result(10) for i, own in enumerate(waiting) if i != 2]
  batcher.close()
  assert sum(ran) == len(waiting) - 1
  assert max(ran) <= 4
  wanted = network.apply(images[[i for i in range(len(waiting)) if i != 2]])["a"].logits
  np.testing.assert_allclose([own.by_task["a"] for own in found], wanted, rtol=1e-4, atol=1e-4)


def test_a_late_picture_does_not_run(network):
  slow = Slow(network)
  batcher = batcher_lib.Batcher(slow, batcher_lib.Limits(1, 0.0, 5, seconds=0.05))
  first, late = (batcher.submit(image) for image in made.images(2))
  threading.Event().wait(0.2)
  slow.let.set()
  first.result(10)
  with pytest.raises(batcher_lib.Late, match=r"no turn within 0\.05"):
    late.result(10)
  batcher.close()
  assert slow.sizes == [1]


def test_a_network_that_fails_answers_so_and_goes_on(network):
  class Failing(Slow):
    def apply(self, images):
      if images.any() and not self.sizes:
        self.sizes.append(1)
        raise RuntimeError("it broke")
      return self._network.apply(images)

  batcher = batcher_lib.Batcher(Failing(network), LIMITS)
  first, second = made.images(2)
  with pytest.raises(RuntimeError, match="it broke"):
    batcher.submit(first).result(10)
  assert set(batcher.submit(second).result(10).by_task) == {"a", "b"}
  batcher.close()


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["{a}", "--batch=0"], "batch is 0"),
    (["{a}", "--max_mb=0"], "max_mb is 0.0"),
    (["{a}", "x={a}", "x={b}"], "'x' (of"),
    (["{a}/nowhere"], "nowhere"),
    (["{a}", "--admin_token_file=/dev/null"], "has 0 characters; give at least 16"),
  ],
)
def test_bad_arguments_are_one_line(folders, capsys, arguments, said):
  with pytest.raises(SystemExit) as ended:
    serve.main([text.format(**folders) for text in arguments])
  error = capsys.readouterr().err
  assert ended.value.code == 2
  assert error.count("\n") == 1
  assert said in error
