"""One method on one data set.

  python -m subtune_jax.main --config=configs/finetune.py:method=lp_ft,dataset=emoji_domains/noto

Arguments after the colon, all optional: method (lp, ft, lp_ft, subtuning, gradual_unfreezing,
auto_rgn, auto_snr), dataset, blocks (of subtuning, joined by +), image_size, epochs. Everything
else is an override: --config.lp_ft.learning_rates="(1e-6,1e-5)".
"""

from subtune_jax.studies import arguments
from subtune_jax.studies.compare import config as compare_config


def get_config(arg: str = ""):
  """One method; `arg` is "key=value,key=value"."""
  config = compare_config.default()
  given = arguments.parse_argument(arg, ("method", "dataset", "blocks", "image_size", "epochs"))
  method = given.get("method", "lp_ft")
  arguments.use_method(config, method)
  arguments.use_dataset(config, given.get("dataset", "emoji_domains/noto"))
  if "blocks" in given:
    config.subtuning.blocks = tuple(given["blocks"].split("+"))
  arguments.use_network(config, given)
  if "epochs" in given and method != "lp":
    config[method].epochs = arguments.integer("epochs", given["epochs"])
  config.name = f"finetune-{method}-{config.data.train.replace('/', '-')}"
  return config
