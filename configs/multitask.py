"""Tasks learnt one after the other on one backbone, which forgets none of them.

  python -m subtune_jax.main --config=configs/multitask.py

Linear probing and SubTuning train every task from the frozen backbone, and the tasks so far answer
as one network (docs/multitask.md); full fine-tuning and L2-SP go on from the weights that the task
before left.
"""

from subtune_jax.studies.sequence import config as sequence_config


def get_config():
  """The study; its fields are declared in subtune_jax/studies/sequence/config.py."""
  config = sequence_config.default()
  config.data.image_size = 32
  for name in ("subtuning", "ft", "l2_sp"):
    config[name].epochs = 4
  return config
