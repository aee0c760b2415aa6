"""ConvNeXt against its peer in transformers, with every weight drawn at random.

The files are those of four libraries: transformers' own, and its tensors under the names of the
others.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subtune_jax import models, weights
from subtune_jax.data import preprocess
from subtune_jax.models import convnext
from subtune_jax.weights.naming import convnext as convnext_names

_DEPTHS, _WIDTHS, _CLASSES = (2, 1, 3, 1), (8, 12, 16, 24), 7
_FULL = {
  "convnext_tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
  "convnext_small": ((3, 3, 27, 3), (96, 192, 384, 768)),
  "convnext_base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
}
_ORDER = ("torchvision", "timm", "transformers", "original")  # of the schemes
_IMAGENET = preprocess.PRESETS["imagenet"]

# Names of transformers (regular expressions) to those of the others.
_TORCHVISION = (
  (r"convnext\.embeddings\.patch_embeddings\.", "features.0.0."),
  (r"convnext\.embeddings\.layernorm\.", "features.0.1."),
  (
    r"convnext\.encoder\.stages\.(\d)\.downsampling_layer\.",
    lambda m: f"features.{2 * int(m[1])}.",
  ),
  (
    r"convnext\.encoder\.stages\.(\d)\.layers\.",
    lambda m: f"features.{2 * int(m[1]) + 1}.",
  ),
  (r"layer_scale_parameter", "layer_scale"),
  (r"dwconv", "block.0"),
  (r"(?<=\.)(\d+)\.layernorm", r"\1.block.2"),
  (r"pwconv1", "block.3"),
  (r"pwconv2", "block.5"),
  (r"convnext\.layernorm", "classifier.0"),
  (r"classifier\.(?=weight|bias)", "classifier.2."),
)
_TORCHVISION = (_TORCHVISION[-1], *_TORCHVISION[:-1])  # before classifier.0 exists
_TIMM = (
  (r"convnext\.embeddings\.patch_embeddings\.", "stem.0."),
  (r"convnext\.embeddings\.layernorm\.", "stem.1."),
  (r"convnext\.layernorm", "head.norm"),
  (r"^classifier", "head.fc"),
  (r"convnext\.encoder\.", ""),
  (r"downsampling_layer", "downsample"),
  (r"\.layers\.", ".blocks."),
  (r"layer_scale_parameter", "gamma"),
  (r"dwconv", "conv_dw"),
  (r"layernorm", "norm"),
  (r"pwconv", "mlp.fc"),
)
_FACEBOOK = (
  (r"convnext\.embeddings\.patch_embeddings\.", "downsample_layers.0.0."),
  (r"convnext\.embeddings\.layernorm\.", "downsample_layers.0.1."),
  (r"convnext\.encoder\.stages\.(\d)\.downsampling_layer\.", r"downsample_layers.\1."),
  (r"convnext\.layernorm", "norm"),
  (r"^classifier", "head"),
  (r"convnext\.encoder\.", ""),
  (r"\.layers\.", "."),
  (r"layer_scale_parameter", "gamma"),
  (r"layernorm", "norm"),
)
_RENAMINGS = {"transformers": (), "torchvision": _TORCHVISION, "timm": _TIMM, "original": _FACEBOOK}


def _rename(state, library: str):
  named = {}
  for key, value in state.items():
    for pattern, replacement in _RENAMINGS[library]:
      key = re.sub(pattern, replacement, key)
    scale = library == "torchvision" and key.endswith("layer_scale")
    named[key] = value[:, None, None] if scale else value
  assert len(named) == len(state)
  return named


def _config(depths, widths, num_classes: int):
  transformers = pytest.importorskip("transformers")
  return transformers.ConvNextConfig(
    depths=list(depths), hidden_sizes=list(widths), num_labels=num_classes, layer_norm_eps=1e-6
  )


@functools.cache
def _peer():
  """The peer with weights that are neither 0 nor 1 anywhere."""
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  torch.set_num_threads(1)
  torch.manual_seed(0)
  net = transformers.ConvNextForImageClassification(_config(_DEPTHS, _WIDTHS, _CLASSES))
  with torch.no_grad():
    for name, parameter in net.named_parameters():
      if parameter.ndim > 1:
        parameter.normal_(0, parameter[0].numel() ** -0.5)
      elif "norm" in name or "scale" in name:
        parameter.uniform_(0.5, 1.5).mul_(torch.randint(0, 2, parameter.shape) * 2 - 1)
      else:
        parameter.normal_(0, 0.5)
  return net.eval()


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
  """The model, and the peer's weights read back from a file."""
  torch = pytest.importorskip("torch")
  path = tmp_path_factory.mktemp("convnext") / "weights.pth"
  torch.save(_peer().state_dict(), path)
  model = _model()
  return model, weights.load_pretrained(path, model).variables


def _model(num_classes: int = _CLASSES):
  return models.create("convnext_tiny", num_classes, depths=_DEPTHS, widths=_WIDTHS)


def _images(size: int) -> np.ndarray:
  return np.random.default_rng(size).standard_normal((4, size, size, 3), np.float32)


def _to_torch(images: np.ndarray):
  import torch

  return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def _error(ours, theirs) -> float:
  theirs = np.asarray(theirs)
  assert ours.shape == theirs.shape
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _module_of(block: str):
  """The peer's module whose output is the block's."""
  backbone = _peer().convnext
  if block in ("stem", "top"):
    return backbone.embeddings if block == "stem" else backbone.layernorm
  stage, unit = convnext.stage_and_unit(block)
  return backbone.encoder.stages[stage - 1].layers[unit - 1]


@pytest.mark.parametrize("size", [64, 75])
def test_logits_and_the_output_of_every_block_are_the_peers(ours, size):
  model, variables = ours
  expected = {}
  hooks = [
    _module_of(b).register_forward_hook(lambda m, i, y, b=b: expected.update({b: y.detach()}))
    for b in model.block_names
  ]
  logits = _peer()(_to_torch(_images(size))).logits.detach()
  for hook in hooks:
    hook.remove()

  @jax.jit
  def blockwise(variables, x):
    outputs = []
    for unit in (*model.block_names, "head"):
      names = (*model.block_names, "head", None)
      x = model.apply(variables, x, start=unit, stop=names[names.index(unit) + 1])
      outputs.append(x)
    return outputs

  *outputs, got = blockwise(variables, _images(size))
  assert _error(got, logits) < 1e-4
  for block, output in zip(model.block_names, outputs, strict=True):
    theirs = expected[block].numpy()
    theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
    assert _error(output, theirs) < 1e-4, block


def test_gradients_are_the_peers(ours):
  torch = pytest.importorskip("torch")
  model, variables = ours
  images, labels = _images(64), np.array([0, 2, 6, 3])
  blocks = ("stem", "block2/unit1", "block3/unit3", "top")

  def loss_fn(params):
    logits = jax.nn.log_softmax(model.apply({"params": params}, images))
    return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], 1))

  gradients = jax.device_get(jax.jit(jax.grad(loss_fn))(variables["params"]))
  net = _peer()
  net.zero_grad()
  loss = torch.nn.functional.cross_entropy(net(_to_torch(images)).logits, torch.from_numpy(labels))
  loss.backward()
  theirs = {k: p.grad.numpy() for k, p in net.named_parameters()}
  source = convnext_names.SCHEMES[_ORDER.index("transformers")].source
  checked = 0
  for path, gradient in _flat({"params": gradients}).items():
    if path.startswith(tuple(f"params/{b}/" for b in blocks)):
      key, convert = source(model, path, "convnext.")
      assert _error(gradient, convert(*(theirs[k] for k in key))) < 1e-3, path
      checked += 1
  assert checked == 4 + (4 + 9) + 9 + 2


def _flat(tree) -> dict[str, np.ndarray]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("library", _RENAMINGS)
def test_every_librarys_file_gives_the_same_variables(ours, library, form, tmp_path):
  torch = pytest.importorskip("torch")
  model, variables = ours
  state = _rename(_peer().state_dict(), library)
  path = tmp_path / form
  if form == "safetensors":
    pytest.importorskip("safetensors.torch").save_file(
      {k: v.contiguous() for k, v in state.items()}, path
    )
  else:
    torch.save({"model": state}, path, _use_new_zipfile_serialization=form == "zip")
  loaded = weights.load_pretrained(path, model, preprocessing=_IMAGENET)
  assert not loaded.not_loaded
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


def test_a_headless_file_of_transformers_loads_without_its_prefix(ours, tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / "weights.pth"
  torch.save(_peer().convnext.state_dict(), path)
  loaded = weights.load_pretrained(path, _model(5))
  assert set(loaded.not_loaded) == {"head/kernel", "head/bias"}
  assert loaded.variables["params"]["head"]["kernel"].shape == (_WIDTHS[-1], 5)
  got, expected = ({k: v for k, v in t["params"].items() if k != "head"}
                   for t in (loaded.variables, ours[1]))  # fmt: skip
  jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("library", _RENAMINGS)
def test_a_missing_and_a_surplus_tensor_are_errors(library, tmp_path):
  torch = pytest.importorskip("torch")
  state = _rename(_peer().state_dict(), library)
  missing = next(key for key in state if "3" in key)
  state["surplus.weight"] = state.pop(missing)
  torch.save(state, tmp_path / "weights.pth")
  with pytest.raises(weights.WeightsError, match=r"surplus\.weight") as caught:
    weights.load_pretrained(tmp_path / "weights.pth", _model(), preprocessing=_IMAGENET)
  assert f"missing from the file: {missing}" in str(caught.value)


@functools.cache
def _shapes(name: str):
  model = models.create(name, 1000)
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  return model, jax.eval_shape(model.init, jax.random.key(0), images)


@functools.cache
def _peer_shapes(name: str) -> dict[str, np.ndarray]:
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  with torch.device("meta"):
    peer = transformers.ConvNextForImageClassification(_config(*_FULL[name], 1000))
  return {k: np.broadcast_to(np.float32(0), v.shape) for k, v in peer.state_dict().items()}


@pytest.mark.parametrize("library", _RENAMINGS)
@pytest.mark.parametrize("name", _FULL)
def test_names_and_shapes_of_the_full_size_are_the_peers(name, library):
  theirs = _rename(_peer_shapes(name), library)
  model, shapes = _shapes(name)
  assert set(shapes) == {"params"}
  scheme = convnext_names.SCHEMES[_ORDER.index(library)]
  used = set()
  for path, leaf in _flat(shapes).items():
    keys, convert = scheme.source(model, path, scheme.prefixes[-1])
    assert convert(*(theirs[k] for k in keys)).shape == leaf.shape, path
    used |= set(keys)
  assert used == set(theirs)


# ------------------------------------------------------------------ the model


def test_block_by_block_is_the_whole_bit_for_bit(ours):
  model, variables = ours
  units = (*model.block_names, "head")

  @jax.jit
  def both(variables, images):
    x = images
    for i, unit in enumerate(units):
      x = model.apply(variables, x, start=unit, stop=(*units[1:], None)[i])
    return x, model.apply(variables, images)

  np.testing.assert_array_equal(*both(variables, _images(64)))


def test_bfloat16_is_near_float32_and_keeps_float32_parameters(ours):
  model, variables = ours
  half = models.create("convnext_tiny", _CLASSES, jnp.bfloat16, depths=_DEPTHS, widths=_WIDTHS)
  images = _images(64)

  @jax.jit
  def both(variables, x):
    middle = half.apply(variables, x, stop="block2/unit1")
    return middle, half.apply(variables, middle, start="block2/unit1"), model.apply(variables, x)

  middle, logits, expected = both(variables, images)
  assert (middle.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
  assert _error(logits, expected) < 0.1
  created = jax.eval_shape(half.init, jax.random.key(0), images)
  assert {leaf.dtype for leaf in jax.tree.leaves(created)} == {jnp.dtype(jnp.float32)}


def test_images_too_small_for_the_last_stage_are_an_error():
  with pytest.raises(ValueError, match=r"\(1, 31, 64, 3\).*at least 32"):
    jax.eval_shape(_model().init, jax.random.key(0), jnp.zeros((1, 31, 64, 3)))


def test_depths_and_widths_of_different_lengths_are_an_error():
  with pytest.raises(ValueError, match=r"depths=\(1, 1\) and widths=\(8,\)"):
    models.create("convnext_tiny", 3, depths=(1, 1), widths=(8,))
