"""The naming schemes of each family of models."""

from flax import linen as nn

from subtune_jax.weights.naming import (
  base,
  bit,
  clip_resnet,
  convnext,
  efficientnet,
  own,
  resnet,
  vit_clip,
  vit_google,
  vit_timm,
  vit_torchvision,
  vit_transformers,
)

_SCHEMES = (
  *efficientnet.SCHEMES,
  *resnet.SCHEMES,
  *clip_resnet.SCHEMES,
  *bit.SCHEMES,
  *convnext.SCHEMES,
  *vit_timm.SCHEMES,
  *vit_torchvision.SCHEMES,
  *vit_transformers.SCHEMES,
  *vit_clip.SCHEMES,
  *vit_google.SCHEMES,
  *own.SCHEMES,
)


def schemes(family: type[nn.Module]) -> tuple[base.Scheme, ...]:
  """Returns the schemes that can name the tensors of models of this class."""
  return tuple(scheme for scheme in _SCHEMES if issubclass(family, scheme.family))
