"""The fields of a search for layers, on top of those of a comparison.

`configs/*.py` start from `default()` and change what they need. `data`, `backbone`, `augment`,
`optimizer` and `batch_size` are shared; `methods`, `seeds` and the sections of the methods are
those of the final comparison, in which SubTuning trains the blocks that the search chose.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from subtune_jax import methods
from subtune_jax.data import choices
from subtune_jax.runner import executors, recipes
from subtune_jax.search import evaluator, kernel_store, ranks, rules
from subtune_jax.search import units as units_lib
from subtune_jax.statistics import criteria
from subtune_jax.studies import arguments
from subtune_jax.studies.compare import config as compare_config

KINDS = ("profile", "windows2", "windows3", "pairs", "greedy", "predicted", "uniform")
OF_RANKS = ("profile", "greedy", "uniform")  # kinds of search for ranks of LoRA
STARTS = ("none", "all", "both")
HEADS = ("random", "probe")
SPLITS = ("train", "trainval")
FINAL = "final"  # folder of the final comparison


def default() -> ml_collections.ConfigDict:
  """A finetuning profile of EfficientNet-Lite0 on Emoji Domains, and what its best block does."""
  config = compare_config.default()
  config.experiment = "search"
  config.name = "search"
  config.title = "Which layers?"
  config.search = search = ml_collections.ConfigDict()
  search.kinds = ("profile",)  # of "profile", "windows2", "windows3", "pairs", "greedy",
  # "predicted" (from gradients, without training: docs/selection.md), "uniform" (of ranks: one for
  # all units); in order
  # Not empty, such as (1, 4, 16, 64): sets are units at ranks of LoRA (docs/adapters.md#ranks).
  search.ranks = ()
  search.propose = 0  # of "predicted": race so many sets of the highest predicted accuracy; 0: none
  search.probes = 4  # of "predicted": random combinations of the features; more cost more time
  # Of "predicted": above so many images the kernels are spanned by a random sample of that size.
  search.landmarks = 1000
  # Of "predicted": weights of a block's kernel beside the head's, to choose from.
  search.eta = (1.0,)
  # Of "predicted", of BatchNorm: "candidate", "running", "images" (docs/selection.md); empty: as
  # norm_mode has it, "candidate" for "batch".
  search.statistics = ""
  search.units = "blocks"  # "blocks", "stages", "6" (runs), or "early: stem block0; late: block15"
  search.split = "train"  # labelled images that the search sees: "train" or "trainval"
  search.folds = 5  # of cross-validation; 1 trains on train and scores on validation
  search.fold_seed = 0  # which of the possible foldings
  search.seeds = (0,)  # trainings of each set on each fold; a score is the mean over them
  search.references = True  # score the head alone and all units on the same folds too, by training
  search.learning_rate = 1e-3  # peak rate, the same for every set
  # Each training of a set chooses among these on a part of its fold's training images (a fifth);
  # empty: search.learning_rate is all there is.
  search.learning_rates = ()
  search.head_factor = 1.0  # the head's rate as a multiple of it
  search.epochs = 8
  search.norm_mode = "batch"  # BatchNorm of tuned blocks: "batch" or "running" statistics
  search.head = "random"  # a training starts from a "random" head, or from the fold's "probe";
  # from that of the weights with backbone.keep_head
  search.probe_l2 = 1e-2  # strength of that probe and of the head alone (no validation in a fold)
  search.rule = "gain"  # of greedy: "gain", "significance", "tolerant", "size" (search/rules.py)
  search.epsilon = 0.01  # of "gain" and "tolerant", in accuracy: 0.01 is one point
  search.alpha = 0.05  # of "significance"
  search.size = 3  # of "size": how many units
  search.start = "none"  # greedy from "none" (forward), "all" (backward), or the better of "both"
  search.baseline = "none"  # what the first unit must beat: "none" (0, as in the paper) or "head"
  search.max_params = 0  # budget: trained parameters with the head; 0 is none
  search.max_fork_macs = 0  # budget: multiply-adds of one more task from a shared backbone; 0: none
  search.fork_batch = 0  # images at a time for which the forks are timed on this machine; 0: not
  search.max_fork_ms = 0.0  # budget: milliseconds of such a fork; 0 is none
  search.max_seconds = 0.0  # budget: seconds of training that greedy may take; 0 is none
  search.racing = False  # drop sets that will not win before all folds are trained
  search.regret = 0.01  # of racing: expected loss of accuracy by it, at most, at every step
  search.level = 0.95  # of the sets named undecided
  search.store = ""  # folder of ledger and logits, to share with other searches; "": the workdir
  search.in_pieces = True  # programs of single blocks, so that a new set compiles nothing
  search.prefix_bytes = 2 << 30  # memory for shared activations, per device; 0 shares none
  search.prefix_disk_bytes = 0  # scratch files for what does not fit
  search.final = True  # retrain the chosen set on all training images, beside the other methods
  search.final_grid = False  # there with subtuning.learning_rates, not those of the search alone
  return config


def check(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for values that make no sense."""
  executors.check(config, one_device=True)
  recipes.check_image_size(config)
  recipes.check_trace(config)
  choices.check("sampling", config.sampling, methods.SAMPLING)
  if criteria.of(config).name != criteria.ACCURACY:
    raise ValueError(
      f"select_by is {config.select_by!r}; a search compares sets of blocks by their accuracy: "
      "leave it at 'accuracy', or compare methods without a search"
    )
  search = config.search
  kinds = tuple(search.kinds)
  if not kinds or len(set(kinds)) != len(kinds):
    raise ValueError(f"search.kinds is {kinds}; give at least one of {', '.join(KINDS)}, each once")
  for kind in kinds:
    choices.check("kind of search", kind, KINDS)
  _check_rates(search)
  _check_predicted(search)
  _check_ranks(search)
  choices.check("search.split", search.split, SPLITS)
  choices.check("search.start", search.start, STARTS)
  choices.check("search.baseline", search.baseline, ("none", "head"))
  choices.check("search.head", search.head, HEADS)
  recipes.check_seeds("search.seeds", search.seeds)
  if search.folds < 1 or (search.folds == 1 and search.split != "train"):
    raise ValueError(
      f"search.folds is {search.folds} on the split {search.split!r}; give 2 or more, or 1 with "
      "search.split='train': then the validation split is held out"
    )
  if not search.probe_l2 > 0:
    raise ValueError(f"search.probe_l2 is {search.probe_l2}; it must be above 0")
  if not 0 < search.regret < 1:
    raise ValueError(f"search.regret is {search.regret}; it is an accuracy in (0, 1)")
  if not 0 < search.level < 1:
    raise ValueError(f"search.level is {search.level}; it must be in (0, 1)")
  own = searched(config)
  if config.search.final and own not in config.methods:
    raise ValueError(
      f"methods is {tuple(config.methods)}: the final comparison needs {own!r} among them, or "
      "set search.final to False"
    )
  if config.subtuning.beside_frozen:
    raise ValueError(
      "subtuning.beside_frozen is True, and a search scores sets of blocks without the frozen "
      "features; set it to False, and compare with it by configs/compare.py"
    )
  _check_forks(search)
  make_rule(config, 0.0)
  make_budget(config)
  make_recipe(config).method(("block",))


def searched(config: ml_collections.ConfigDict) -> str:
  """The method that the search is for."""
  return "lora" if config.search.ranks else "subtuning"


def trains(config: ml_collections.ConfigDict) -> bool:
  """Whether the search trains at all: sets may be predicted alone."""
  return tuple(config.search.kinds) != ("predicted",) or config.search.propose > 0


def _check_ranks(search: Any) -> None:
  """Raises ValueError for kinds, rules and ranks that do not go together."""
  kinds = tuple(search.kinds)
  if not search.ranks:
    if "uniform" in kinds:
      raise ValueError("search.kinds has 'uniform', which is of ranks; give search.ranks too")
    return
  ranks.check("search.ranks is", search.ranks)
  for kind in kinds:
    choices.check("kind of search for ranks", kind, OF_RANKS)
  if "greedy" in kinds and search.rule == "size":
    raise ValueError("search.rule 'size' counts units; of ranks give another rule, and as a budget "
                     "search.max_params")  # fmt: skip


def _check_forks(search: Any) -> None:
  """Raises ValueError for options of the timing of forks that make no sense."""
  if search.fork_batch < 0 or search.max_fork_ms < 0:
    raise ValueError(
      f"search.fork_batch is {search.fork_batch}, max_fork_ms {search.max_fork_ms}; give 0 or more"
    )
  if search.max_fork_ms and not search.fork_batch:
    raise ValueError(
      f"search.max_fork_ms is {search.max_fork_ms} and search.fork_batch 0; say for how many "
      "images at a time forks are timed, for example search.fork_batch=1"
    )


def _check_rates(search: Any) -> None:
  """Raises ValueError for learning rates that make no grid."""
  if not search.learning_rates:
    return
  rates = recipes.rising("search.learning_rates", search.learning_rates)
  if not rates[0] > 0:
    raise ValueError(f"search.learning_rates is {rates}; each must be above 0")


def rates_of(config: Any) -> tuple[float, ...]:
  """The learning rates of a set's training; one that is alone is not chosen."""
  return tuple(config.search.learning_rates) or (config.search.learning_rate,)


def _check_predicted(search: Any) -> None:
  """Raises ValueError for options of "predicted" that make no sense."""
  choices.check("search.statistics", search.statistics, ("", *kernel_store.STATISTICS))
  if search.probes < 1 or search.propose < 0:
    raise ValueError(
      f"search.probes is {search.probes}, search.propose {search.propose}; give at least 1 and 0"
    )
  if search.landmarks < 2:
    raise ValueError(f"search.landmarks is {search.landmarks}; give at least 2 images")
  if not search.eta or not min(search.eta) > 0:
    raise ValueError(f"search.eta is {tuple(search.eta)}; give at least one weight, each above 0")
  if search.propose and "predicted" not in search.kinds:
    raise ValueError(
      f"search.propose is {search.propose}, and search.kinds {tuple(search.kinds)} has no "
      "'predicted', which proposes; add it, or set search.propose to 0"
    )


def network_of(config: ml_collections.ConfigDict, model: Any) -> units_lib.Network:
  """The candidates of a backbone: units, or units at ranks."""
  if config.search.ranks:
    return ranks.network(model, config.search.units, config.search.ranks)
  return units_lib.network(model, config.search.units)


def make_rule(config: ml_collections.ConfigDict, overlap: float) -> rules.Rule:
  """The rule of the greedy search."""
  search = config.search
  size = search.size if search.rule == "size" else None
  return rules.Rule(search.rule, search.epsilon, search.alpha, size, overlap)


def make_budget(config: ml_collections.ConfigDict, most_macs: int | None = None) -> rules.Budget:
  """What the chosen set may cost, and the search.

  Args:
    config: of the search.
    most_macs: those of the dearest fork within search.max_fork_ms.
  """
  search = config.search
  macs = [limit for limit in (search.max_fork_macs, most_macs) if limit]
  return rules.Budget(
    search.max_params or None, min(macs, default=None), search.max_seconds or None
  )


def make_recipe(
  config: ml_collections.ConfigDict, class_names: Sequence[str] | None = None,
  network: units_lib.Network | None = None,
) -> evaluator.Recipe:  # fmt: skip
  """How a set is trained; without class names, as if there were no class weights."""
  search = config.search

  def method(rate: float) -> Callable[[tuple[str, ...]], methods.Method]:
    stage = recipes.stage_options(config, search, rate)
    if search.ranks:
      return lambda blocks: balanced(methods.adapter_tuning(rate, **stage))
    return lambda blocks: balanced(methods.sub_tuning(blocks, rate, **stage))

  def balanced(made: methods.Method) -> methods.Method:
    return made if class_names is None else recipes.balanced(config, made, class_names)

  probe = balanced(methods.linear_probing(l2=(search.probe_l2,), standardize=config.lp.standardize))
  head = "pretrained" if config.backbone.keep_head else search.head
  adapters = None
  if isinstance(network, ranks.Ranks):
    adapters = ranks.Adapters(network, config.lora.to_dict())
  rates = rates_of(config)
  grid = {rate: method(rate) for rate in rates} if len(rates) > 1 else {}
  return evaluator.Recipe(method(rates[0]), probe, head, grid, adapters)


def final_config(
  config: ml_collections.ConfigDict, blocks: tuple[str, ...],
  pattern: Mapping[str, int] | None = None,
) -> Any:  # fmt: skip
  """The comparison in which SubTuning trains `blocks`, as the search trained its sets.

  Of ranks it is LoRA with the `pattern`, block -> rank. Without blocks the method is left out: it
  would be linear probing.
  """
  own = compare_config.default()
  final = config.copy_and_resolve_references()
  with final.unlocked():
    del final.search
  own.update(final)
  own.experiment = "compare"
  what = "ranks" if config.search.ranks else "blocks"
  own.name, own.title = f"{config.name}-final", f"{config.title}: the chosen {what}"
  name = searched(config)
  if not blocks:
    own.methods = tuple(other for other in own.methods if other != name)
    return own
  search, tuned = config.search, own[name]
  tuned.update(ranks.options(tuned.to_dict(), pattern) if pattern else {"blocks": blocks})
  if not search.final_grid:
    tuned.learning_rates = rates_of(config)
  for field in ("epochs", "head_factor", "norm_mode"):
    tuned[field] = search[field]
  tuned.probe_first = search.head == "probe" and not config.backbone.keep_head
  return own


def final_of(
  config: ml_collections.ConfigDict, network: units_lib.Network, units: tuple[str, ...]
) -> Any:
  """The `final_config` of a set."""
  pattern = network.pattern(units) if isinstance(network, ranks.Ranks) else None
  return final_config(config, network.blocks(units), pattern)


def use_arguments(
  config: ml_collections.ConfigDict, argument: str, more: tuple[str, ...] = ()
) -> None:
  """Applies the "key=value,key=value" behind the colon of --config=file.py:...

  Args:
    config: of a search or a study.
    argument: "" for none. Every config of searches takes dataset, kinds, units, backbone, weights,
      image_size, epochs and folds.
    more: further keys, of "racing", "rule", "start" and "verify": how many predicted sets to train,
      which ends in the final comparison too.

  Raises:
    ValueError: see `arguments.parse_argument`; a backbone without weights.
  """
  allowed = ("dataset", "kinds", "units", "backbone", "weights", "image_size", "epochs", "folds")
  given = arguments.parse_argument(argument, (*allowed, *more))
  arguments.check_weights(given)
  if "dataset" in given:
    arguments.use_dataset(config, given["dataset"])
  arguments.use_network(config, given)
  search = config.search
  if "kinds" in given:
    search.kinds = tuple(given["kinds"].split("+"))
  if "racing" in given:
    choices.check("racing", given["racing"], ("yes", "no"))
    search.racing = given["racing"] == "yes"
  if "verify" in given:
    search.propose = arguments.integer("verify", given["verify"])
    search.final = search.propose > 0
  for name in ("units", "rule", "start"):
    if name in given:
      search[name] = given[name]
  for name in ("epochs", "folds"):
    if name in given:
      search[name] = arguments.integer(name, given[name])
  check(config)
