"""This library's own names: the '/'-paths of the variables, as msgpack and Orbax keep them."""

from flax import linen as nn

from subtune_jax.models import backbone
from subtune_jax.weights.naming import base


def _source(model: nn.Module, path: str, prefix: str) -> base.Source:
  del model
  return base.ordered(prefix + path)


SCHEMES = (base.Scheme("subtune_jax variables", backbone.Backbone, _source),)
