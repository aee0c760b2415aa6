"""A network's weights as safetensors under timm's or torchvision's names.

A folder for timm is in the layout of its hub: `timm.create_model("local-dir:FOLDER",
pretrained=True)` builds it.
"""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

import numpy as np

from subtune_jax import strict_json
from subtune_jax.data import choices
from subtune_jax.deploy import classifier as classifier_lib
from subtune_jax.deploy import folder as folder_lib
from subtune_jax.deploy.exporting import program
from subtune_jax.models import vit
from subtune_jax.weights import files as weights_files
from subtune_jax.weights import inverse, matching, timm_config

LAYOUTS = ("timm", "torchvision")
WEIGHTS, CONFIG = "model.safetensors", "config.json"

_TIMM_README = """\
# A trained network for timm

```python
import timm, torch

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(image)[None])  # of a Pillow image
names = model.pretrained_cfg["label_names"]
```
"""
_TORCHVISION_README = """\
# A trained network for torchvision

```python
import safetensors.torch, torchvision

model = torchvision.models.{call}
model.load_state_dict(safetensors.torch.load_file("{weights}"))
model.eval()  # reads (images - mean) / std of images [n, 3, {size}, {size}] in 0..255: {facts}
```
"""


def write(
  classifier: classifier_lib.Classifier, path: str | os.PathLike, *, layout: str = "timm"
) -> pathlib.Path:
  """Writes the folder, after this library's reader has read the weights back, bit for bit.

  Args:
    classifier: what is exported.
    path: of a new folder.
    layout: one of `LAYOUTS`.

  Returns:
    The folder.

  Raises:
    ExportError: the other library cannot build the network, or something lies at `path`.
  """
  import safetensors.numpy

  choices.check("layout", layout, LAYOUTS)
  try:
    peer = getattr(timm_config, layout)(classifier.model)
  except ValueError as e:
    raise program.ExportError(str(e)) from e
  arrays = _tensors(classifier, peer, layout)
  with program.new_folder(path) as folder:
    safetensors.numpy.save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})
    said = program.facts(classifier, layout=layout, scheme=peer.scheme)
    if layout == "timm":
      config = strict_json.dumps(_timm_config(classifier, peer), indent=1)
      (folder / CONFIG).write_text(config + "\n")
      readme = _TIMM_README
    else:
      readme = _TORCHVISION_README.format(
        call=_call(peer, len(classifier.class_names)), weights=WEIGHTS, facts=program.FACTS,
        size=classifier.image_size,
      )  # fmt: skip
    _check(classifier, peer, folder / WEIGHTS)
    program.describe(folder, said, readme)
  return pathlib.Path(path)


def _tensors(
  classifier: classifier_lib.Classifier, peer: timm_config.Peer, layout: str
) -> dict[str, np.ndarray]:
  variables = {k: np.asarray(v) for k, v in folder_lib.flatten(classifier.variables).items()}
  arrays = inverse.tensors(peer.scheme, classifier.model, variables)
  if peer.arguments.get("no_embed_class") and classifier.model.class_token:
    # timm has no position of the class token here: it is added to the token itself.
    positions = arrays["pos_embed"]
    arrays["cls_token"] = arrays["cls_token"] + positions[:, :1]
    arrays["pos_embed"] = np.ascontiguousarray(positions[:, 1:])
  if layout == "torchvision":
    arrays = {k: v[:, None, None] if k.endswith("layer_scale") else v for k, v in arrays.items()}
  return arrays


def _timm_config(classifier: classifier_lib.Classifier, peer: timm_config.Peer) -> dict[str, Any]:
  """timm's config.json (timm/models/_hub.py, save_config_for_hf)."""
  mean, std = (
    [value / 255 for value in np.broadcast_to(own, 3).tolist()]
    for own in (classifier.preprocessing.mean, classifier.preprocessing.std)
  )
  size, names = classifier.image_size, list(classifier.class_names)
  return {
    "architecture": peer.name,
    "num_classes": len(names),
    "num_features": classifier.variables["params"]["head"]["kernel"].shape[0],
    "global_pool": peer.global_pool,
    "label_names": names,
    "model_args": peer.arguments,
    "pretrained_cfg": {
      "input_size": [3, size, size], "fixed_input_size": isinstance(classifier.model, vit.ViT),
      "mean": mean, "std": std, "interpolation": classifier.interpolation,
      "crop_pct": 1.0, "crop_mode": "squash", "num_classes": len(names), "custom_load": False,
      "first_conv": peer.ends[0], "classifier": peer.ends[1],
    },
  }  # fmt: skip


def _call(peer: timm_config.Peer, num_classes: int) -> str:
  """The Python that builds torchvision's network."""
  arguments = {**peer.arguments, "num_classes": num_classes}
  return f"{peer.name}({', '.join(f'{name}={value}' for name, value in arguments.items())})"


def _check(
  classifier: classifier_lib.Classifier, peer: timm_config.Peer, file: pathlib.Path
) -> None:
  """Reads the file as weights of any source are read."""
  wanted = folder_lib.flatten(classifier.variables)
  tensors = weights_files.read_tensors(file)
  match = matching.recognise(tensors, classifier.model, tuple(wanted), str(file))
  shapes = classifier.variables
  found, missing = matching.convert(tensors, shapes, match, str(file))
  if missing or match.scheme.title != peer.scheme:
    raise program.ExportError(f"the weights are read back as {match.scheme.title}, {missing}")
  flat: Mapping[str, Any] = folder_lib.flatten(found)
  moved = {"params/embedding/class_token", "params/embedding/positions"}
  moved &= set(wanted) if peer.arguments.get("no_embed_class") else set()
  for path, array in wanted.items():
    if path not in moved and not np.array_equal(np.asarray(flat[path]), np.asarray(array)):
      raise program.ExportError(f"{path} is read back with other values; nothing was written")
