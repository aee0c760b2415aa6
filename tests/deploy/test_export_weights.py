"""Weights under other libraries' names: those libraries load them strictly and answer the same."""

import dataclasses
import json

import numpy as np
import pytest

from subtune_jax import models, weights
from subtune_jax.deploy import classifier, folder
from subtune_jax.deploy.exporting import program, torch_weights
from tests import timm_peer
from tests.deploy import export_networks

_UNITS = (1, 1, 1, 1)
_TINY = {"depth": 2}
# What timm builds: model, options, image size.
TIMM = {
  "resnet18": ("resnet18", {}, 32),
  "bottlenecks": ("resnet50", {"stage_sizes": (1, 2, 1, 1)}, 32),
  "vit": ("vit_ti16", _TINY, 32),
  "vit_mean": ("vit_s32", {**_TINY, "pool": "mean", "heads": 12}, 64),
  "vit_odd": ("vit_b16", {"depth": 1, "width": 48, "heads": 4, "mlp_width": 96,
                          "qkv_bias": False, "class_token": False, "pool": "mean"}, 32),
  "dinov2": ("dinov2_vit_s14", {**_TINY, "pool": "token"}, 28),
  "dinov2_registers": ("dinov2_reg_vit_s14", {**_TINY, "pool": "token"}, 28),
  "convnext": ("convnext_tiny", {"depths": _UNITS, "widths": (8, 16, 32, 64)}, 64),
  "lite0": ("efficientnet_lite0", {}, 33),
  "lite2": ("efficientnet_lite2", {}, 32),
}  # fmt: skip
TORCHVISION = {
  "resnet50": ("resnet50", {}, 32),
  "vit": ("vit_b16", {"depth": 1, "width": 48, "heads": 4, "mlp_width": 96}, 32),
  "convnext_tiny": ("convnext_tiny", {}, 32),
}
SLOW = ("bottlenecks", "vit_odd", "dinov2", "lite0", "lite2", "resnet50", "convnext_tiny")
REFUSED = {
  "cifar": ("resnet14", {}, "stem='cifar', it has 'imagenet'; width=16, it has 64"),
  "pool": ("dinov2_vit_s14", _TINY, "pool='token_mean', it has 'token' and 'mean'"),
  "clip": ("clip_vit_b16", _TINY, "activation='quick_gelu'"),
  "epsilon": ("convnext_tiny", {"top_epsilon": 1e-12}, "top_epsilon=1e-12, it has 1e-6"),
  "pruned": ("resnet18", {"pruned": (("block1/unit1/conv1", 32),)}, "channels of it were pruned"),
  "bit": ("bit_resnet50", {"stage_sizes": _UNITS}, "a BitResNet has no counterpart there"),
}


def cases(table):
  return [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in table]


def read(made, path):
  """Our own reader's variables, with the check of config.json."""
  return weights.load_pretrained(path / torch_weights.WEIGHTS, made.model, preprocessing="half")


def same(made, found, but=()):
  wanted, got = folder.flatten(made.variables), folder.flatten(found.variables)
  assert set(got) == set(wanted)
  for name in set(wanted) - set(but):
    np.testing.assert_array_equal(got[name], wanted[name], err_msg=name)


@pytest.mark.parametrize("name", cases(TIMM))
def test_what_is_written_for_timm_is_read_back(name, tmp_path):
  made = export_networks.make(*TIMM[name])
  found = read(made, torch_weights.write(made, tmp_path / "out"))
  assert found.not_loaded == ()
  assert found.not_checked == ()
  moved = ("params/embedding/class_token", "params/embedding/positions")
  same(made, found, moved if name == "dinov2_registers" else ())
  images = export_networks.images(made, 3)
  again = dataclasses.replace(made, variables=found.variables)
  np.testing.assert_allclose(again.logits(images), made.logits(images), atol=1e-5)


@pytest.mark.parametrize("name", cases(TORCHVISION))
def test_what_is_written_for_torchvision_is_read_back(name, tmp_path):
  made = export_networks.make(*TORCHVISION[name])
  same(made, read(made, torch_weights.write(made, tmp_path / "out", layout="torchvision")))


def answers(network, made, images):
  """Logits of a network of timm's or torchvision's."""
  import torch

  mean, std = (
    torch.tensor(np.broadcast_to(v, 3).astype(np.float32)).reshape(1, 3, 1, 1)
    for v in (made.preprocessing.mean, made.preprocessing.std)
  )
  x = torch.tensor(images).permute(0, 3, 1, 2).float()
  with torch.no_grad():
    return network.eval()((x - mean) / std).numpy()


@pytest.mark.parametrize("name", cases(TIMM))
def test_timm_answers_the_same(name, tmp_path):
  timm = timm_peer.load()
  made = export_networks.make(*TIMM[name])
  path = torch_weights.write(made, tmp_path / "out")
  network = timm.create_model(f"local-dir:{path}", pretrained=True)  # loads strictly
  images = export_networks.images(made, 4)
  wanted = made.logits(images)
  found = answers(network, made, images)
  np.testing.assert_allclose(found, wanted, atol=1e-4 * max(1, np.abs(wanted).max()))
  seen = timm.data.resolve_model_data_config(network)
  np.testing.assert_allclose(np.multiply(seen["mean"], 255), made.preprocessing.mean)
  np.testing.assert_allclose(np.multiply(seen["std"], 255), made.preprocessing.std)
  size = made.image_size
  assert (tuple(seen["input_size"]), seen["interpolation"]) == ((3, size, size), "bicubic")
  assert (seen["crop_pct"], seen["crop_mode"]) == (1.0, "squash")
  assert tuple(network.pretrained_cfg["label_names"]) == export_networks.CLASSES


def test_timm_answers_the_same_for_real_weights_and_images(tmp_path):
  timm = timm_peer.load()
  made, images = export_networks.with_imagenet_weights()
  path = torch_weights.write(made, tmp_path / "out")
  network = timm.create_model(f"local-dir:{path}", pretrained=True)
  wanted, found = made.logits(images[:64]), answers(network, made, images[:64])
  np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))
  np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", cases(TORCHVISION))
def test_torchvision_answers_the_same(name, tmp_path):
  torchvision = pytest.importorskip("torchvision")
  safetensors = pytest.importorskip("safetensors.torch")
  made = export_networks.make(*TORCHVISION[name])
  path = torch_weights.write(made, tmp_path / "out", layout="torchvision")
  readme = (path / program.README).read_text()
  call = readme.partition("model = torchvision.models.")[2].partition("\n")[0]
  network = eval(f"models.{call}", {"models": torchvision.models})
  network.load_state_dict(safetensors.load_file(path / torch_weights.WEIGHTS), strict=True)
  images = export_networks.images(made, 4)
  wanted = made.logits(images)
  found = answers(network, made, images)
  np.testing.assert_allclose(found, wanted, atol=1e-4 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("case", REFUSED)
def test_what_timm_cannot_build_is_refused(case, tmp_path):
  name, options, said = REFUSED[case]
  model = models.create(name, 5, **options)
  made = classifier.Classifier(model, {}, None, model.image_size, "bicubic", ("a",) * 5)
  with pytest.raises(program.ExportError) as raised:
    torch_weights.write(made, tmp_path / "out")
  assert str(raised.value).startswith("timm cannot build this network: ")
  assert said in str(raised.value)
  assert not list(tmp_path.iterdir())


def test_side_tuning_has_no_counterpart(tmp_path):
  with pytest.raises(program.ExportError, match="a SideTuned has no counterpart"):
    torch_weights.write(export_networks.of_family("side"), tmp_path / "out")


def test_weights_that_are_not_read_back_are_not_written(tmp_path, monkeypatch):
  made = export_networks.make(*TIMM["convnext"])
  real = torch_weights._tensors
  monkeypatch.setattr(
    torch_weights, "_tensors",
    lambda *a: {k: v + np.float32(1e-3) if k == "head.fc.bias" else v
                for k, v in real(*a).items()},
  )  # fmt: skip
  with pytest.raises(program.ExportError, match="params/head/bias is read back with other values"):
    torch_weights.write(made, tmp_path / "out")
  assert not list(tmp_path.iterdir())


def test_the_config_of_timm_is_compared_when_it_is_read(tmp_path):
  made = export_networks.make(*TIMM["lite0"])
  path = torch_weights.write(made, tmp_path / "out")
  config = json.loads((path / torch_weights.CONFIG).read_text())
  assert config["architecture"] == "tf_efficientnet_lite0"
  config["architecture"] = "tf_efficientnet_lite1"
  (path / torch_weights.CONFIG).write_text(json.dumps(config))
  with pytest.raises(weights.WeightsError, match="blocks"):
    read(made, path)
