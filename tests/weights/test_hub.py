"""Weights by hub name, from a server on this machine that speaks the hub's protocol."""

import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

from huggingface_hub import constants
import numpy as np
import pytest

from subtune_jax import models, weights
from subtune_jax.weights import errors, hub

torch = pytest.importorskip("torch", reason="the files of the hub are torch's")
from safetensors import torch as safetensors_torch  # noqa: E402 - it imports torch

from tests.weights import torch_vits  # noqa: E402 - likewise

REPO, COMMIT, OLDER = "some/vit", "a" * 40, "b" * 40
NAME = f"hf_hub:{REPO}"
OPTIONS = {"width": 32, "depth": 2, "heads": 4, "patch_size": 8, "image_size": 32}
ARGUMENTS = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 8, "img_size": 32}
CONFIG = {
  "architecture": "vit_tiny_patch16_224", "num_classes": 5, "num_features": 32,
  "model_args": ARGUMENTS,
  "pretrained_cfg": {
    "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "crop_pct": 0.9, "interpolation": "bicubic",
  },
}  # fmt: skip


class Hub(http.server.ThreadingHTTPServer):
  """Serves `files`: (revision, name) -> bytes; `cut` ends a body early."""

  def __init__(self):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.files, self.cut, self.asked = {}, 0, []

  @property
  def url(self) -> str:
    return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
  def do_HEAD(self):
    self._answer(None)

  def do_GET(self):
    self._answer(self.server.cut)

  def log_message(self, *_):
    pass

  def _answer(self, cut):
    self.server.asked.append((self.command, self.path))
    path = self.path.lstrip("/").split("/")
    if "/".join(path[:2]) != REPO or path[2] != "resolve":
      return self._refuse("RepoNotFound")
    revision = {"main": COMMIT, "v0": OLDER}.get(path[3], path[3])
    if revision not in (COMMIT, OLDER):
      return self._refuse("RevisionNotFound")
    body = self.server.files.get((revision, path[4]))
    if body is None:
      return self._refuse("EntryNotFound", revision)
    begin = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
    self.send_response(206 if begin else 200)
    self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
    self.send_header("X-Repo-Commit", revision)
    self.send_header("Content-Length", str(len(body) - begin))
    self.end_headers()
    if cut is not None:
      self.wfile.write(body[begin:][: cut or None])
    return None

  def _refuse(self, code, revision=None):
    self.send_response(404)
    self.send_header("X-Error-Code", code)
    if revision:
      self.send_header("X-Repo-Commit", revision)
    self.send_header("Content-Length", "0")
    self.end_headers()


@pytest.fixture(scope="module")
def network(tmp_path_factory):
  """(the network in timm, its file)."""
  peer = torch_vits.redraw(torch_vits.Timm())
  path = tmp_path_factory.mktemp("file") / "model.safetensors"
  safetensors_torch.save_file(peer.state_dict(), path)
  return peer, path.read_bytes()


@pytest.fixture
def server(network, monkeypatch, tmp_path):
  running = Hub()
  threading.Thread(target=running.serve_forever, daemon=True).start()
  running.files = {
    (COMMIT, "model.safetensors"): network[1], (COMMIT, "config.json"): json.dumps(CONFIG).encode(),
  }  # fmt: skip
  monkeypatch.setenv("HF_ENDPOINT", running.url)
  monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries of the hub's library
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  yield running
  running.shutdown()
  running.server_close()


def model(**options):
  return models.create("vit_ti16", 5, **OPTIONS | options)


def test_weights_by_name(server, network):
  peer, content = network
  found = weights.load_pretrained(NAME, model())
  images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
  with torch.no_grad():
    theirs = peer(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
  np.testing.assert_allclose(model().apply(found.variables, images), theirs, atol=2e-5)
  assert (found.name, found.revision) == (NAME, COMMIT)
  assert found.sha256 == hashlib.sha256(content).hexdigest()
  assert found.preprocessing.mean == (127.5,) * 3  # of the repository's config.json
  assert found.not_loaded == ()
  asked = len(server.asked)
  weights.load_pretrained(f"{NAME}@{COMMIT}", model())  # is in the cache
  assert all(path.endswith("preprocessor_config.json") for _, path in server.asked[asked:])


def test_a_revision_and_the_older_form_of_a_file(server, network, tmp_path):
  torch.save(network[0].state_dict(), tmp_path / "x.bin")
  server.files[OLDER, "pytorch_model.bin"] = (tmp_path / "x.bin").read_bytes()
  found = hub.fetch(f"{NAME}@v0")
  assert (found.path.name, found.revision) == ("pytorch_model.bin", OLDER)
  given = weights.load_pretrained(f"{NAME}@v0", model(), preprocessing="half")
  assert given.revision == OLDER
  assert len(given.not_checked) == 1  # no config.json


def test_another_architecture_is_the_comparisons_error(server):
  with pytest.raises(errors.WeightsError, match=r"heads: 4 by .*, 2 here"):
    weights.load_pretrained(NAME, model(heads=2))


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("hf_hub:vit", "give hf_hub:OWNER/NAME"),
    (f"{NAME}@", "give hf_hub:OWNER/NAME"),
    ("hf_hub:some/other", "no such repository"),
    (f"{NAME}@v9", "has no revision 'v9'"),
    (f"{NAME}@{OLDER}", "has neither model.safetensors nor pytorch_model.bin"),
  ],
)
def test_a_name_that_leads_nowhere(server, name, message):
  with pytest.raises(errors.WeightsError, match=message):
    weights.load_pretrained(name, model())


def test_an_interrupted_download_leaves_nothing_half_read(server, network, monkeypatch):
  server.cut = 1000
  with pytest.raises(errors.WeightsError, match=r"could not be downloaded.*run the same command"):
    weights.load_pretrained(NAME, model())
  server.cut = 0
  found = weights.load_pretrained(NAME, model())
  assert found.sha256 == hashlib.sha256(network[1]).hexdigest()


def test_without_a_network_the_cache_or_the_command(server):
  weights.load_pretrained(NAME, model())
  server.shutdown()
  server.server_close()
  assert weights.load_pretrained(NAME, model()).revision == COMMIT
  with pytest.raises(errors.WeightsError, match=r"run: hf download some/other model\.safetensors"):
    weights.load_pretrained("hf_hub:some/other", model())


def test_offline_and_without_the_library(tmp_path):
  script = f"""
import sys
from subtune_jax import models, weights
try:
  weights.load_pretrained("{NAME}", models.create("resnet14", 5))
except ValueError as e:
  print(e)
sys.modules["huggingface_hub"] = None  # an import of it raises
try:
  weights.load_pretrained("{NAME}", models.create("resnet14", 5))
except ValueError as e:
  print(e)
"""
  variables = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", script], env=os.environ | variables, capture_output=True, text=True,
    check=True, cwd=pathlib.Path(__file__).parents[2],
  )  # fmt: skip
  offline, missing = done.stdout.splitlines()
  assert "run: hf download some/vit model.safetensors config.json" in offline
  assert missing == f"{NAME!r} needs huggingface_hub; run: pip install 'subtune-jax[hub]'"


def test_no_other_name_asks_the_hub(server):
  for name in ("some/vit", "resnet50/nothing"):
    with pytest.raises(errors.WeightsError):
      weights.load_pretrained(name, model())
  assert server.asked == []
