"""The figures of a study of holistic transfer: heading, picture, alt text and caption of each."""

from subtune_jax.report import document as document_lib
from subtune_jax.studies.holistic_transfer import curve_figures, figures, sweep_figures
from subtune_jax.studies.holistic_transfer import record as record_lib

Study = record_lib.Study
TABLES = {
  "sizes": "Number and structure of the seen classes",
  "directions": "Directions of the classifier's updates",
  "blocks": "SubTuning of each unit",
}


def drawn(study: Study) -> list[document_lib.Figure]:
  """The figures of the study, rendered; those that its record has nothing for are left out."""
  seeds = " Thin: single seeds." if study.num_seeds > 1 else ""
  dots = " Dots: single seeds." if study.num_seeds > 1 else ""
  lines = " Lines: 95 % intervals of the mean." if study.has_intervals else ""
  return document_lib.rendered(
    [*_paper_figures(study, seeds, dots, lines), *_further_figures(study, seeds, dots, lines)]
  )


def _paper_figures(study: Study, seeds: str, dots: str, lines: str) -> list[document_lib.Drawn]:
  """(name, title, figure or None, alt text, caption) of the paper's figures 2 to 7."""
  along = " and ".join(study.title(method).lower() for method in study.along())
  means = ""
  if study.num_seeds > 1:
    means = (
      " Thick: mean over seeds at the same gamma; thin: single seeds. Points: means over seeds, "
      "each with its own gamma, which may lie a little off it."
    )
  return [
    (
      "plane", "Seen against absent classes", figures.plane(study),
      "Curves of accuracy on absent classes against accuracy on seen classes over all gammas.",
      "Each curve is all that one model can reach by adding a gamma to the logits of absent "
      f"classes, exact, from the test logits.{means}",
    ),
    (
      "plane_methods", "Every method, as it is and with ALG", figures.plane_methods(study),
      "Scatter of every method in the plane of both accuracies, linked to itself with ALG.",
      "Mean over seeds. Up and to the right is better. The axes need not start at 0.",
    ),
    (
      "nearest_means", "The classifier against its features", figures.nearest_means(study),
      "Bars of accuracy of the head and of nearest class means, before and after fine-tuning.",
      "Nearest class means (cosine) take the means of training images of all classes in the "
      f"target: what the features know, not a method for absent classes.{dots}",
    ),
    (
      "absent_accuracy", "Absent classes along training",
      curve_figures.absent_accuracy(study),
      "Lines of accuracy on absent classes by epoch, by the head and by nearest class means.",
      f"Training: {along}.{seeds}",
    ),
    (
      "absent_probability", "Probability of the absent classes",
      curve_figures.absent_probability(study),
      "Lines of the probability of absent classes, and of the share answered so, by epoch.",
      "P(c|x) = P(U|x) P(c|x, U) for an absent class c: the first factor is what falls if the "
      f"logits are biased to the seen classes. Training: {along}.{seeds}",
    ),
    (
      "ausuc", "AUSUC of every method", figures.ausuc_bars(study),
      "Bars of the area under the seen-unseen curve of every method.",
      "The same with every gamma: how good a model is once calibrated in whatever way. Diamond: "
      f"the same features answered by nearest class means.{dots}{lines}",
    ),
  ]  # fmt: skip


def _further_figures(study: Study, seeds: str, dots: str, lines: str) -> list[document_lib.Drawn]:
  """Likewise of the paper's figures 8 to 11, and of the study per block."""
  return [
    (
      "sizes", TABLES["sizes"], sweep_figures.sizes(study),
      "Lines of accuracy on the shared absent classes against the number of seen classes.",
      "On test images of those classes alone that no size of a seed is fine-tuned on, so that all "
      "points of a seed are of the same images. Grey: the source model on them. Whole groups: "
      f"seen classes are drawn by super-class.{dots}",
    ),
    (
      "sweep", "Optimisers", sweep_figures.sweep(study),
      "Heat maps of AUSUC by learning rate and weight decay, one per optimiser.",
      "AUSUC of fine-tuning at its last epoch, one seed. Framed: what validation images of seen "
      "classes would choose.",
    ),
    (
      "directions", TABLES["directions"], curve_figures.directions(study),
      "Heat map of the cosine between the updates of every two classes, seen and absent ones.",
      "Weights after fine-tuning minus those of the source model, by class; the first seed. "
      "Classes without images are pushed alike, which keeps their order among themselves.",
    ),
    (
      "margins", "Margins along fine-tuning", curve_figures.margins(study),
      "Lines of mean logits of absent test images by epoch, and of their differences.",
      "Test images of absent classes. The label's lead over the other absent classes is what Acc "
      f"U/U needs; the seen classes' lead over the absent is what gamma has to exceed.{seeds}",
    ),
    (
      "blocks", TABLES["blocks"], sweep_figures.blocks(study),
      "Points of the logit gap, of AUSUC and of accuracy on absent classes by unit trained.",
      "One unit trained at a time. The gap is what ALG adds to the logits of absent classes. "
      f"Levels across: fine-tuning and the source model.{dots}{lines}",
    ),
  ]  # fmt: skip
