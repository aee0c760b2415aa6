"""The fields of a comparison of methods, and what they mean for the other rooms.

`configs/*.py` start from `default()` and change what they need. A field that is not here is an
error.
"""

import importlib.util

import ml_collections

from subtune_jax import methods
from subtune_jax.runner import executors, recipes


def default() -> ml_collections.ConfigDict:
  """A comparison of the four methods on Emoji Domains, one learning rate each."""
  config = ml_collections.ConfigDict()
  config.experiment = "compare"  # which folder of subtune_jax.studies runs
  config.name = "compare"  # names the default workdir, runs/<name>
  config.title = "Which method?"  # heads the report
  config.methods = ("lp", "ft", "lp_ft", "subtuning")  # which, in the order of the table
  config.seeds = (0, 1, 2)  # heads, orders and views
  # What learning rates, strengths of probes and epochs are chosen by on the validation split:
  # "accuracy", "balanced_accuracy" (the mean over classes), "auroc" or "nll".
  config.select_by = "accuracy"
  config.grid_seeds = "first"  # learning rates are tried on the "first" seed, or on "all"
  config.batch_size = 64  # examples per step, over all devices
  # "uniform", or "balanced": every class equally often in an epoch, which is as long as before; a
  # probe has no batches.
  config.sampling = "uniform"
  config.resume = "latest"  # "latest", or "last_good": skip a damaged newest checkpoint
  config.checkpoint_seconds = 30.0  # least time between two checkpoints of one training
  config.save_model = True  # write WORKDIR/best, the model folder that predict and export read
  # Trace so many steps of the first training with jax.profiler into WORKDIR/trace; 0 is off.
  config.trace_steps = 0
  # Write TensorBoard events through clu, which needs TensorFlow (the extra [tfds]).
  config.tensorboard = importlib.util.find_spec("tensorflow") is not None
  # "here": in this process; "ray": on a cluster, local or at $RAY_ADDRESS (docs/scale.md).
  config.workers = "here"
  config.ray = executors.section()

  config.data = data = ml_collections.ConfigDict()
  data.train = "emoji_domains/noto"  # its train and validation splits; its test split is "ID"
  data.ood = ("emoji_domains/twemoji", "emoji_domains/openmoji", "emoji_domains/fluent")
  data.image_size = 64  # pixels, square
  data.interpolation = "bicubic"  # of the resize to that size; VTAB's is "bilinear_no_antialias"
  data.label_map = ()  # "theirs=ours": classes of data.ood called otherwise; "theirs=" drops one
  data.shift = ""  # benchmark of data.shifts whose label maps and class masks hold for data.ood
  data.num_train = 0  # first so many training images of a nested subset by class; 0 is all
  data.subset_seed = 0  # which of the possible subsets
  data.flip_labels = False  # call class c of data.train num_classes - 1 - c: an output-level shift
  data.retrain = False  # after the choices, train on train + validation (VTAB-1k's protocol)

  config.backbone = backbone = ml_collections.ConfigDict()
  backbone.name = "efficientnet_lite0"  # subtune_jax.models
  backbone.options = ""  # of models.create, e.g. "norm_epsilon=1e-12,activation='gelu_tanh'"
  backbone.weights = (
    "efficientnet_lite0/imagenet"  # a known name, a file, "hf_hub:OWNER/NAME", "random"
  )
  backbone.preprocessing = ""  # key of preprocess.PRESETS; "" is what the weights tell
  backbone.keep_head = False  # start from the head of the weights, which has to have these classes
  backbone.dtype = "float32"  # of the computation: "float32" or "bfloat16"
  backbone.frozen_dtype = "float32"  # frozen weights in memory; "bfloat16" rounds the backbone
  # Blocks that the backward pass computes anew: "all", or selectors such as "block1,block2".
  backbone.remat = ""

  config.augment = augment = ml_collections.ConfigDict()
  augment.kind = "none"  # "none", "shift" or "resized_crop"
  augment.pad = 4  # of "shift": largest shift in pixels
  augment.flip = False  # mirror left and right half of the time
  augment.flip_vertical = False  # mirror top and bottom half of the time
  augment.rotate = 0.0  # by up to so many degrees either way; the rim is repeated outwards
  augment.quarter_turns = False  # by 0, 90, 180 or 270 degrees
  augment.color = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue
  augment.mixup = 0.0  # alpha of mixup; 0 is off
  augment.num_views = 1 << 20  # views repeat after so many epochs

  config.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.name = "adam"  # "adam" (AdamW where weight_decay > 0), "sgd"; methods.OPTIMIZERS
  optimizer.momentum = 0.9  # of "sgd"
  optimizer.nesterov = False  # of "sgd"
  optimizer.weight_decay = 0.0
  optimizer.clip_norm = 0.0  # of the gradient of what is trained; 0 is off
  optimizer.schedule = "cosine"  # "cosine", "constant" or "steps" (methods.Gradient)
  optimizer.warmup = 0.0  # share of the steps
  optimizer.accumulate = 1  # a batch's gradient from so many parts of it (docs/accelerators.md)

  config.loss = loss = ml_collections.ConfigDict()
  # Of steps and probes: "none"; "balanced": n / (classes * images of the class); "cat=2.0,dog=0.5":
  # 1 for the others. The loss is the mean over the training set with these weights.
  loss.class_weights = "none"

  for name in recipes.offered():
    config[name] = recipes.section(methods.DECLARED[name])
  return config
