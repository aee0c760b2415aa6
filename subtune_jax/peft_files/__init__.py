"""Files of PEFT, the adapters of torch: read onto Flax models and written from them.

>>> adapted, tree = peft_files.read("an_adapter", model, variables, images)
>>> peft_files.write("another", adapted, tree, variables, layout="timm")

A folder holds adapter_config.json and adapter_model.safetensors. Neither torch nor peft is needed.
"""

from subtune_jax.peft_files.config import FILE as CONFIG
from subtune_jax.peft_files.layers import LAYOUTS
from subtune_jax.peft_files.reading import read
from subtune_jax.peft_files.writing import write

__all__ = ["CONFIG", "LAYOUTS", "read", "write"]
