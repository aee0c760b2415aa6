"""An adapter that peft wrote becomes a network that answers, and a run's adapters one of peft's."""

import copy
import json
import re
import shutil

import jax
import numpy as np
from PIL import Image
import pytest

import subtune_jax
from subtune_jax import merge, predict, weights
from subtune_jax.deploy import description, folder, peft_folder
from subtune_jax.methods import selectors
from subtune_jax.runner import model_folder, network
from subtune_jax.studies.compare import config as compare_config
from subtune_jax.training import export
from tests import deploy_network, peft_peers

peft = peft_peers.load()
torch = pytest.importorskip("torch")
import safetensors.torch  # noqa: E402 - it imports torch

VIT = {"width": 32, "depth": 2, "heads": 2, "patch_size": 8}
RESNET = {"stage_sizes": (1, 1, 1, 1)}
KINDS = {
  "timm_vit": ("vit_ti16", VIT, {"target_modules": ["qkv"], "modules_to_save": ["head"]}),
  "transformers_vit": ("vit_ti16", {**VIT, "norm_epsilon": 1e-12},
                       {"target_modules": ["q_proj", "v_proj"], "use_dora": True,
                        "modules_to_save": ["classifier"]}),
  "timm_resnet": ("resnet18", RESNET, {"target_modules": ["conv1"], "modules_to_save": ["fc"]}),
}  # fmt: skip
CLASSES = ("a", "b", "é", "d", "e f")


def made(kind, path, classes=peft_peers.CLASSES):
  """A network, its frozen weights and a trained adapter of peft in files; the adapted network."""
  net = getattr(peft_peers, kind)().net
  path.mkdir(parents=True, exist_ok=True)
  base = {k: v.contiguous() for k, v in net.state_dict().items()}
  safetensors.torch.save_file(base, path / "base.safetensors")
  net = peft.get_peft_model(net, peft.LoraConfig(r=2, lora_alpha=4, **KINDS[kind][2])).eval()
  peft_peers.shake(net)
  peft_peers.train(net, torch.optim.AdamW(peft_peers.trained(net), lr=1e-2), steps=2)
  net.save_pretrained(path / "adapter")
  return net


@pytest.fixture(scope="module")
def timm_vit(tmp_path_factory):
  path = tmp_path_factory.mktemp("timm")
  return path, made("timm_vit", path)


def network_of(kind):
  return description.Network(KINDS[kind][0], KINDS[kind][1])


def torch_logits(net, classifier, images):
  """The client's, of the images that the classifier reads."""
  mean, std = (np.float32(v) for v in (classifier.preprocessing.mean, classifier.preprocessing.std))
  return peft_peers.logits(net, (images.astype(np.float32) - mean) / std).detach().numpy()


def pixels(n=5):
  return np.random.default_rng(3).integers(0, 256, (n, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
  "kind", ["timm_vit", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k != "timm_vit")]
)
def test_the_client_and_the_classifier_agree(kind, tmp_path):
  net = made(kind, tmp_path)
  own = peft_folder.load(
    tmp_path / "adapter", network_of(kind), tmp_path / "base.safetensors", class_names=CLASSES,
    image_size=32, preprocessing="half",
  )  # fmt: skip
  x = pixels()
  again = subtune_jax.load(folder.save(tmp_path / "model", network_of(kind), own))
  assert again.class_names == CLASSES
  theirs = torch_logits(net, own, x)
  np.testing.assert_allclose(again.logits(x), theirs, atol=1e-4)
  plain = weights.load_pretrained(tmp_path / "base.safetensors", own.model, preprocessing="half")
  assert np.abs(own.model.apply(plain.variables, (x - 127.5) / 127.5) - theirs).max() > 0.01


def arguments(path, *more):
  options = ",".join(f"{k}={v}" for k, v in VIT.items())
  return [
    path / "adapter", "--backbone=vit_ti16", f"--options={options}", "--image_size=32",
    f"--weights={path / 'base.safetensors'}", f"--out={path / 'out'}", *more,
  ]  # fmt: skip


def test_pictures_are_predicted_from_an_adapter(timm_vit, tmp_path, capsys):
  """By the command; classes and preprocessing lie in the folder."""
  source, net = timm_vit
  path = shutil.copytree(source, tmp_path / "copy")
  labels = {str(i): name for i, name in enumerate(CLASSES)}
  (path / "adapter/config.json").write_text(json.dumps({"id2label": labels}))
  said = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2] * 3, "resample": 3}
  (path / "adapter/preprocessor_config.json").write_text(json.dumps(said))
  code, out, _ = deploy_network.run(merge.main, capsys, *arguments(path))
  assert (code, out) == (0, f"{path / 'out'}: vit_ti16, 5 classes, 32 px\n")
  own = subtune_jax.load(path / "out")
  assert own.preprocessing.mean == (127.5, 102.0, 76.5)
  assert own.interpolation == "bicubic"
  x = pixels(1)
  (path / "photos").mkdir()
  Image.fromarray(x[0]).save(path / "photos/a.png")
  table = path / "t.csv"
  code, _, _ = deploy_network.run(
    predict.main, capsys, path / "out", path / "photos", f"--out={table}", "--probabilities"
  )
  assert code == 0
  row = table.read_text().splitlines()[1].split(",")
  theirs = torch.softmax(torch.tensor(torch_logits(net, own, x)), -1)[0].numpy()
  assert row[1] == CLASSES[theirs.argmax()]
  np.testing.assert_allclose([float(v) for v in row[3:8]], theirs, atol=1e-4)


def test_positions_of_another_size_are_told(timm_vit, tmp_path, capsys, caplog):
  path = shutil.copytree(timm_vit[0], tmp_path / "copy")
  (path / "adapter/classes.txt").write_text("\n".join(CLASSES))
  told = {}
  for size in (32, 48):
    shutil.rmtree(path / "out", ignore_errors=True)
    caplog.clear()
    more = (f"--image_size={size}", "--preprocessing=half")
    assert deploy_network.run(merge.main, capsys, *arguments(path), *more)[0] == 0
    told[size] = [text for text in caplog.messages if "positions" in text or "position " in text]
  assert told[32] == []
  (text,) = told[48]
  assert "has position embeddings of 4 x 4 patches, resized to 6 x 6 for 48 px; an adapter" in text


@pytest.mark.parametrize(
  ("more", "told"),
  [
    ([], "names no classes: it has neither classes.txt nor a config.json with id2label"),
    (["classes=a b", "--preprocessing=half"], r"\(5,.*\) in the file, .* by as many class names"),
    (["classes=a b c d a"], "the class names have name 'a' twice"),
    (["classes="], "the class names have no class"),
    (["classes=a b c d e"], "does not say how its network saw images"),
    (["classes=a b c d e", "--weights=nothing.safetensors"], "neither a file nor one of the known"),
    (["classes=a b c d e", "--backbone=vit_16"], "Unknown model 'vit_16'. Did you mean"),
    (["classes=a b c d e", "--image_size=36", "--preprocessing=half"], "36"),
    (["classes=a b c d e", "--image_size=-1"], "image_size must be a positive integer"),
    (["classes=a b c d e", "--backbone=resnet18", "--options=", "--preprocessing=half"],
     "resnet|ResNet"),
    (["--classes=/dev/null"], "the class names have no class"),
    (["--classes=nothing.txt"], "nothing.txt cannot be read: No such file"),
  ],
)  # fmt: skip
def test_what_is_missing_or_does_not_fit_is_one_line(timm_vit, tmp_path, capsys, more, told):
  source, _ = timm_vit
  path = shutil.copytree(source, tmp_path / "copy")
  if more and more[0].startswith("classes="):
    names, *more = more
    (path / "adapter/classes.txt").write_text("\n".join(names[8:].split()))
  code, _, error = deploy_network.run(merge.main, capsys, *arguments(path, *more))
  assert code == 2, error
  assert error.count("\n") == 1
  assert error.startswith("error: ")
  assert len(error) < 1200
  assert re.search(told, error), error
  assert not (path / "out").exists()


def moved(path, leaf):
  """Whether a leaf trains: those of adapters, and the head."""
  name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
  return name.startswith("head/") or selectors.adapters(name, leaf)


@pytest.mark.parametrize("method", ["lora", pytest.param("dora", marks=pytest.mark.slow)])
def test_the_adapters_of_a_run_go_to_the_client_and_come_back(method, timm_vit, tmp_path):
  source, _ = timm_vit
  config = compare_config.default()
  config.data.image_size = 32
  config.backbone.update(
    name="vit_ti16", weights=str(source / "base.safetensors"), preprocessing="half",
    options=",".join(f"{k}={v}" for k, v in VIT.items()),
  )  # fmt: skip
  config[method].update(rank=3, where=("mlp", "/encoderblock_1/attention/qkv"))
  config[method].rank_pattern = "mlp=2"
  engine, pretrained = network.load_network(config, 5)
  _, start = network.prepared(method, config, engine, pretrained)
  rng = np.random.default_rng(0)
  variables = jax.tree_util.tree_map_with_path(
    lambda p, x: np.float32(x + 0.1 * rng.normal(size=x.shape)) if moved(p, x) else x,
    start.variables,
  )
  touched = jax.tree_util.tree_map_with_path(lambda p, x: moved(p, x), variables)
  export.save_task(tmp_path / "task", variables, touched, start.variables, {})
  args = (config, engine, pretrained, method, tmp_path / "task", CLASSES)
  wanted = folder.load(model_folder.write(tmp_path / "best", *args, {"calibration": {}}))
  x = pixels()
  plain = engine.predict(pretrained.variables, x)
  assert np.abs(wanted.logits(x) - plain).max() > 0.1

  path = model_folder.write_peft(tmp_path / "peft", *args, "timm")
  net = peft.PeftModel.from_pretrained(copy.deepcopy(peft_peers.timm_vit().net), path).eval()
  np.testing.assert_allclose(torch_logits(net, wanted, x), wanted.logits(x), atol=1e-4)
  again = peft_folder.load(
    path, network_of("timm_vit"), source / "base.safetensors", image_size=32, preprocessing="half"
  )
  assert again.class_names == CLASSES
  np.testing.assert_allclose(again.logits(x), wanted.logits(x), atol=1e-5)
  with pytest.raises(folder.FolderError, match=r"python -m subtune_jax\.merge"):
    subtune_jax.load(path)
  (tmp_path / "mine").mkdir()
  with pytest.raises(ValueError, match="is there and no folder of PEFT"):
    model_folder.write_peft(tmp_path / "mine", *args, "timm")
  args = (config, engine, pretrained, "ft", tmp_path / "task", CLASSES)
  with pytest.raises(ValueError, match="ft has no adapters; PEFT's files take those of lora"):
    model_folder.write_peft(tmp_path / "other", *args, "timm")


def test_running_statistics_that_moved_are_refused():
  before = {"batch_stats": {"bn": {"mean": np.zeros(3)}}}
  model_folder._check_statistics("lora", before, before)
  after = {"batch_stats": {"bn": {"mean": np.ones(3)}}}
  with pytest.raises(ValueError, match=r"--config\.lora\.norm_mode=running"):
    model_folder._check_statistics("lora", before, after)
