"""Multiply-adds of a search, by counting: what it took, and what the plain way would have taken."""

from subtune_jax.search import scores
from subtune_jax.search import units as units_lib


def training_macs(
  network: units_lib.Network,
  units: scores.Units,
  *,
  num_train: int,
  num_held_out: int,
  epochs: int,
  shared_prefix: bool,
) -> int:
  """Multiply-adds of training a set once and scoring it on the held-out images.

  A unit costs its forward pass; behind the first tuned one as much again for the gradient of its
  input, and as much again for the gradient of its weights where it is tuned.

  Args:
    network: the candidates and their costs.
    units: the set; () is the head alone.
    num_train: images per epoch.
    num_held_out: images that are scored, once.
    epochs: passes over the training images.
    shared_prefix: what comes before the first tuned block is not run.
  """
  tuned = network.blocks(units)
  backward = network.weight_macs(tuned) + network.input_macs(tuned)
  forward = network.fork_macs(units) if shared_prefix else network.total_macs
  return epochs * num_train * (forward + backward) + num_held_out * forward


def prefix_macs(network: units_lib.Network, num_images: int) -> int:
  """Multiply-adds of the shared activations of all images at every block."""
  return num_images * network.total_macs
