"""The claims, each as a question to an archive, put so that the papers expect more than 0."""

from collections.abc import Callable, Sequence
import dataclasses

from benchmarks.claims_parts import archive as archive_lib
from benchmarks.claims_parts import collect, effects
from subtune_jax.report import estimate

Effect = Callable[[archive_lib.Archive], estimate.Estimate]
KUMAR = "Kumar et al. 2022"
SUBTUNING = "SubTuning"
SURGICAL = "Lee et al. 2023"
MAI = "Mai et al. 2024"
EVCI = "Evci et al. 2022"


@dataclasses.dataclass(frozen=True)
class Row:
  """One question to one run.

  Attributes:
    claim: what is said, as a difference that is above 0 if it is true.
    source: paper and place.
    archive: name of the run.
    where: data and condition, for a reader.
    effect: archive -> the difference; the claim is that it is above 0.
    unit: "points" of accuracy, or what else the difference is in.
  """

  claim: str
  source: str
  archive: str
  where: str
  effect: Effect
  unit: str = "points"


def _id(first: str, second: str) -> Effect:
  return lambda a: effects.difference(a, [a.facts["data"]["id"]], first, second)


def _ood(first: str, second: str, after: str = "") -> Effect:
  def effect(a: archive_lib.Archive) -> estimate.Estimate:
    return effects.difference(a, [s + after for s in a.facts["data"]["ood"]], first, second)

  return effect


def _moved(first: tuple[str, str], second: tuple[str, str]) -> Effect:
  """Relative distances of the last block's features: (method, side) twice."""

  def effect(a: archive_lib.Archive) -> estimate.Estimate:
    one, two = (a.facts["moved"][method][side] for method, side in (first, second))
    return effects.over_seeds(one, two)

  return effect


def _lp_ft(archive: str, where: str) -> list[Row]:
  """The paper of LP-FT in one setting."""
  after = collect.AFTER_EPOCHS
  asked: list[tuple[str, str, Effect, str]] = [
    ("In distribution, full fine-tuning is above the probe", "table 1",
     _id("ft", "lp"), "points"),
    ("In distribution, LP-FT is above the probe", "table 1", _id("lp_ft", "lp"), "points"),
    ("Out of distribution, the probe is above full fine-tuning", "table 2",
     _ood("lp", "ft"), "points"),
    ("In distribution, LP-FT is above full fine-tuning", "table 1",
     _id("lp_ft", "ft"), "points"),
    ("Out of distribution, LP-FT is above full fine-tuning", "table 2",
     _ood("lp_ft", "ft"), "points"),
    ("Out of distribution, LP-FT is above the probe", "table 2", _ood("lp_ft", "lp"), "points"),
    ("The best epoch and rate by OOD test labels leave full fine-tuning below the probe",
     "", _ood("lp by oracle", "ft by oracle", after), "points"),
    ("Full fine-tuning moves features more than LP-FT (in distribution)", "",
     _moved(("ft", "id"), ("lp_ft", "id")), "% of their norm"),
    ("Full fine-tuning moves ID features more than OOD ones", "",
     _moved(("ft", "id"), ("ft", "ood")), "% of their norm"),
  ]  # fmt: skip
  return [
    Row(c, ", ".join(filter(None, (KUMAR, s))), archive, where, e, unit) for c, s, e, unit in asked
  ]


def _subtuning(archive: str, where: str, blocks: str) -> list[Row]:
  """A comparison of SubTuning with its rivals."""
  asked: list[tuple[str, Effect]] = [
    (f"In distribution, SubTuning ({blocks}) is above the probe", _id("subtuning", "lp")),
    (f"In distribution, SubTuning ({blocks}) is above full fine-tuning", _id("subtuning", "ft")),
    (f"Out of distribution, SubTuning ({blocks}) is above the probe", _ood("subtuning", "lp")),
    (f"Out of distribution, SubTuning ({blocks}) is above full fine-tuning",
     _ood("subtuning", "ft")),
  ]  # fmt: skip
  return [Row(c, SUBTUNING, archive, where, e) for c, e in asked]


def _held_out(shift: str, first: str, second: str) -> Effect:
  return lambda a: effects.difference(a, [f"{shift}, held out"], first, second)


def _on(name: str, first: str, second: str) -> Effect:
  return lambda a: effects.difference(a, [name], first, second)


def _shifts(archive: str) -> list[Row]:
  """Which block under which shift: profiles of ResNet-14 on held-out folds, methods on tests."""
  stem, last = "stem", "block3/unit2"
  where = "Fashion-MNIST, 1,000 images, ResNet-14, {}, 5 folds"
  asked: list[tuple[str, str, str, Effect]] = [
    ("Noise on the input: the first block is worth more than the last", SURGICAL,
     "gaussian_noise/5", _held_out("gaussian_noise", stem, last)),
    ("Blur of the input: the first block is worth more than the last", SURGICAL,
     "defocus_blur/5", _held_out("defocus_blur", stem, last)),
    ("Low contrast: the first block is worth more than the last", SURGICAL,
     "contrast/5", _held_out("contrast", stem, last)),
    ("Labels changed: the last block is worth more than the first", SURGICAL,
     "flip_labels", _held_out("flip_labels", last, stem)),
  ]  # fmt: skip
  for shift in ("gaussian_noise", "defocus_blur", "contrast", "flip_labels"):
    asked += [
      ("One block, chosen on other folds, is above the head alone", SUBTUNING, shift,
       _held_out(shift, collect.CROSS_FITTED, collect.HEAD)),
      ("One block, chosen on other folds, is above all blocks", SUBTUNING, shift,
       _held_out(shift, collect.CROSS_FITTED, collect.EVERYTHING)),
    ]  # fmt: skip
  return [Row(c, s, archive, where.format(shift), e) for c, s, shift, e in asked]


def _calibration(archive: str, target: str, where: str) -> list[Row]:
  """Fine-tuning on some of the classes: who forgets what, and what one number gives back."""

  def among(first: str, second: str, of: str) -> Effect:
    return lambda a: effects.difference(a, [target], first, second, of)

  def area(row: str) -> Effect:
    return lambda a: estimate.Estimate(*a.facts["ausuc"][row])

  absent, seen, whole = effects.ABSENT, effects.SEEN, effects.ALL
  asked: list[tuple[str, str, Effect, str]] = [
    ("Fine-tuning on seen classes lowers the accuracy of absent ones (U/Y)", "table 1",
     among("pretrained", "ft", absent), "points"),
    ("It raises that of seen ones (S/Y)", "table 1", among("ft", "pretrained", seen), "points"),
    ("ALG, from training data, brings U/Y up", "table 1",
     among("ft + alg", "ft", absent), "points"),
    ("With ALG, U/Y is above the source model's again", "table 1",
     among("ft + alg", "pretrained", absent), "points"),
    ("With ALG, S/Y stays above the source model's", "table 1",
     among("ft + alg", "pretrained", seen), "points"),
    ("PCV brings U/Y up", "table 1", among("ft + pcv", "ft", absent), "points"),
    ("With ALG, fine-tuning is above the source model on all classes (Y/Y)", "table 1",
     among("ft + alg", "pretrained", whole), "points"),
    ("ALG raises the accuracy of fine-tuning on all classes (Y/Y)", "table 1",
     among("ft + alg", "ft", whole), "points"),
    ("With the best gamma (an oracle), it is above the source model on all classes (Y/Y)",
     "table 1", among("ft + star", "pretrained", whole), "points"),
    ("With PCV, it is above the source model on all classes (Y/Y)", "table 1",
     among("ft + pcv", "pretrained", whole), "points"),
    ("Among absent classes alone, accuracy rises by fine-tuning on the others (U/U)", "fig. 4",
     among("ft among absent", "pretrained among absent", absent), "points"),
    ("Nearest class means recognise absent classes better than the source model's features",
     "fig. 3", among("ft by nearest means", "pretrained by nearest means", absent), "points"),
    ("Nearest class means recognise absent classes that the fine-tuned head does not (U/Y)",
     "fig. 3", among("ft by nearest means", "ft", absent), "points"),
    ("AUSUC of fine-tuning is above that of linear probing", "",
     lambda a: -area("lp none - ft")(a), "hundredths"),
    ("AUSUC of fine-tuning is above the source model's", "fig. 7", area("ft none - pretrained"),
     "hundredths"),
    ("AUSUC of fine-tuning is above that of the frozen classifier", "",
     lambda a: -area("frozen_classifier none - ft")(a), "hundredths"),
  ]  # fmt: skip
  return [
    Row(c, ", ".join(filter(None, (MAI, s))), archive, where, e, unit) for c, s, e, unit in asked
  ]


def _sizes(archive: str, test: str, sizes: Sequence[int], where: str) -> list[Row]:
  """Few images against many."""
  made = []
  for size in sizes:
    made += [
      Row("SubTuning is above full fine-tuning", SUBTUNING, archive,
          f"{where}, {size} images", _on(test, f"subtuning {size}", f"ft {size}")),
      Row("The probe is above full fine-tuning", SUBTUNING, archive,
          f"{where}, {size} images", _on(test, f"lp {size}", f"ft {size}")),
      Row("SubTuning is above the probe", SUBTUNING, archive,
          f"{where}, {size} images", _on(test, f"subtuning {size}", f"lp {size}")),
    ]  # fmt: skip
  return made


def _head2toe(archive: str, where: str, ood: bool) -> list[Row]:
  """Head2Toe against what else reads or tunes the network."""
  rivals = (("lp", "the probe"), ("ft", "full fine-tuning"), ("lora", "LoRA"))
  own, said = "head2toe", "{} distribution, Head2Toe is above {}"
  made = [Row(said.format("In", title), EVCI, archive, where, _id(own, m)) for m, title in rivals]
  if ood:
    made += [Row(said.format("Out of", title), EVCI, archive, where, _ood(own, m))
             for m, title in rivals]  # fmt: skip
  return made


def _pruned(archive: str, where: str) -> list[Row]:
  """Networks with fewer channels, tuned where they were pruned."""
  name = "from block6, {} % gone"
  made = []
  for share, said in ((25, "a quarter"), (50, "half"), (75, "three quarters")):
    claim = f"Without {said} of the channels from block6 on, SubTuning of these is above "
    asked = ((f"{claim}the whole network's probe", "lp"), (f"{claim}the same with all of them", ""))
    made += [
      Row(text, SUBTUNING, archive, where, _id(name.format(share), rival or name.format(0)))
      for text, rival in asked
    ]
  return made


def _active(archive: str, where: str, method: str) -> list[Row]:
  """The paper's rule of asking for labels against random ones, at the last two totals."""
  claim = "Labels that the margin asks for are worth more than random ones"
  return [
    Row(claim, SUBTUNING, archive, f"{where}, {total} labels",
        _id(f"{method} margin {total}", f"{method} random {total}"))
    for total in (288, 576)
  ]  # fmt: skip


def table() -> list[Row]:
  """All rows, in the order of the document."""
  handwriting = "glyphs, handwriting, 64 px, EfficientNet-Lite0"
  clean = "Fashion-MNIST, 800 clean images, noise and blur OOD, ResNet-14"
  emoji = "emoji, noto, 32 px, EfficientNet-Lite0"
  clothes = "800 clothes of Fashion-MNIST, 32 px, EfficientNet-Lite0"
  small = "glyphs, handwriting, 32 px, EfficientNet-Lite0"
  contrast = "Fashion-MNIST, 800 of low contrast, clean and noise OOD, ResNet-14"
  return [
    *_lp_ft("lpft_glyphs", handwriting),
    *_lp_ft("lpft_fashion_clean", clean),
    *_lp_ft("lpft_fashion_contrast", contrast),
    *[
      Row(claim, f"{KUMAR}, {place}", "lpft_batch_glyphs",
          "glyphs, handwriting, 32 px, BatchNorm on batch statistics", effect)
      for claim, place, effect in (
        ("In distribution, LP-FT is above the probe", "table 1", _id("lp_ft", "lp")),
        ("Out of distribution, LP-FT is above the probe", "table 2", _ood("lp_ft", "lp")),
      )
    ],
    *_subtuning("lpft_glyphs", handwriting, "the last four units"),
    *_subtuning("lpft_fashion_clean", clean, "the last two units"),
    *_subtuning("lpft_fashion_contrast", contrast, "two units in the middle"),
    *_pruned("pruning_glyphs", small),
    *[
      Row("In distribution, SubTuning (block13 on) from pretrained weights is above the same from "
          "fresh ones", SUBTUNING, archive, where, _id("subtuning", "fresh_blocks"))
      for archive, where in (
        ("reinit_glyphs", small),
        ("reinit_emoji", emoji),
        ("reinit_fashion", clothes),
      )
    ],
    *_active("active_glyphs_lp", "glyphs, 32 px, probe", "lp"),
    *_active("active_glyphs_subtuning", "glyphs, 32 px, SubTuning", "subtuning"),
    *[
      Row("In distribution, SubTuning (block13 on) is above Head2Toe", SUBTUNING, archive, where,
          _id("subtuning", "head2toe"))
      for archive, where in (
        ("head2toe_glyphs", small), ("head2toe_emoji", emoji), ("head2toe_fashion", clothes)
      )
    ],
    *_sizes("sizes_glyphs", "glyph_domains/handwriting", (180, 360, 936), "glyphs, 32 px"),
    *_shifts("shifts_fashion"),
    *_calibration("calibration_glyphs", "glyph_domains/handwriting",
                  "glyphs, serif to handwriting, 18 of 36 classes seen, 32 px"),
    *_head2toe("head2toe_glyphs", small, ood=True),
    *_head2toe("head2toe_emoji", emoji, ood=True),
    *_head2toe("head2toe_fashion", clothes, ood=False),
  ]  # fmt: skip
