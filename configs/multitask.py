"""Tasks learnt one after the other on one backbone, which forgets none of them.

  python -m subtune_jax.main --config=configs/multitask.py

Linear probing and SubTuning train every task from the frozen backbone, and the tasks so far answer
as one network (docs/multitask.md); full fine-tuning, L2-SP and LoRA go on from the weights that the
task before left. Forward: points right after a task's training against the task alone, mean over
all but the first.

Result of 2026-11-29 on two CPU cores, one seed, with
--config.tasks="('emoji_domains/noto','glyph_domains/serif','glyph_domains/sans')"; test accuracy in
% at the end, with the 95 % interval over test groups, and points that earlier tasks lost:

                    forgetting  forward               noto              serif               sans
  Linear probing           0.0      0.0  25.7 [20.1, 31.1]  91.0 [88.4, 93.4]  81.0 [73.3, 87.8]
  SubTuning                0.0      0.0  31.8 [25.8, 37.5]  95.8 [93.5, 97.7]  89.4 [83.9, 94.4]
  Full fine-tuning         8.1     +3.7    7.3 [4.3, 10.5]  93.8 [92.3, 95.1]  93.2 [86.6, 98.0]
  L2-SP                    4.4     +1.1    6.9 [4.1, 10.2]  98.5 [97.7, 99.3]  93.1 [86.9, 97.5]
  LoRA                     8.0    +13.0   10.0 [6.3, 13.9]  86.5 [84.2, 88.7]  91.0 [84.3, 96.2]

Weights of all tasks: 30.2 MB for SubTuning, 15.3 for LoRA, 14.3 for the others. LoRA learnt serif
(80.8 %) and sans (75.5 %) less well alone, in 4 epochs at one rate, than the other methods did.
"""

from subtune_jax.studies.sequence import config as sequence_config


def get_config():
  """The study; its fields are declared in subtune_jax/studies/sequence/config.py."""
  config = sequence_config.default()
  config.data.image_size = 32
  for name in ("subtuning", "ft", "l2_sp", "lora"):
    config[name].epochs = 4
  return config
