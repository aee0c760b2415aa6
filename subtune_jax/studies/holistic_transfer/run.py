"""Holistic transfer: fine-tune on some of the classes, test on all (arXiv 2409.16223).

A source model that knows all classes Y is fine-tuned in a target domain on images of the seen
classes S, with cross-entropy over all logits; the absent classes U = Y - S come back in the test.
Learning rates are chosen by accuracy on validation images of seen classes. Images and labels of
absent classes are read for test numbers alone, and for nearest class means, which are an analysis.

Each network is read once, and everything else is computed from what that left behind:

  WORKDIR/epochs/KEY/STAGE-EPOCH.npz   a training after an epoch (STAGE counts from 0, EPOCH from 1)
  WORKDIR/epochs/KEY/wise-ALPHA.npz    (1 - ALPHA) source + ALPHA training KEY
  WORKDIR/epochs/source.npz            the source model

with "test/labels" [n], "test/logits" [n, C], "test/features" [n, d] of all classes, "train/..." of
the target's training images of all classes (the training saw those of seen classes alone), and
"head/kernel" [d, C], "head/bias" [C]. Trainings of the sweep have no features; trainings of a
pseudo split have "held_out/logits" and "held_out/labels" alone, of seen classes. Labels count from
0 in the order of record["data"]["class_names"].

results.json has name, title, command, created, versions, devices, config and backbone as a
comparison has, data {"train": target, "source", "class_names", "num_train", "num_validation",
"num_test"}, and "holistic":

  source      how the source model was made: data, method, learning_rate, test_accuracy, file, ...
  partitions  [{"id", "seed", "how", "num_seen", "seen": [class], "absent": [class]}]
  methods     [{"name", "title", "oracle", "learning_rate", "grid", "grid_edge"}]: what was chosen
  networks    [network], each of
    id         of this entry
    use        "pretrained", "main", "wise", "block", "size" or "sweep"
    method     name ("ft", "subtuning:14..top", "sweep:adam:0.0005", ...); title; seed
    partition  id of its classes
    key        of the training (null for the source model); learning_rate; alpha (of "wise")
    validation_accuracy, trained_params, seconds
    directions {"similarity": {"seen", "absent", "between"}, "update_length", "norm_before",
               "norm_after": {"seen", "absent"}}: mean cosine of classifier updates; after the last
               epoch; the matrix follows from the files (`calibration.updates`)
    common     of "size", and "main" of ft: accuracy on the absent classes that all sizes share,
               {"head": {"Y", "own"}, "ncm": {"Y", "own"}}
    epochs     [{"stage", "epoch", "file", numbers}], the last one last; every epoch of the methods
               in holistic.along, else the last. The source model is their epoch 0.
  pcv         [{"method", "seed", "gamma", "splits": [{"key", "file", "pseudo_absent": [class]}]}]
  table       [{"method", "title", "calibration", "oracle", "numbers"}]: the last epoch of "main",
              "wise" and "pretrained" networks over seeds, each number {"mean", "by_seed"}; Y/Y,
              S/Y, U/Y and ausuc have their 95 % interval over test concepts and seeds too, "95":
              [low, high], and the row {"against": {"pretrained", "ft"} -> {"Y/Y", "S/Y", "U/Y",
              "AUSUC"} -> [difference, low, high]}, paired, over images
  blocks      the same for SubTuning of each unit, with "unit" and "blocks"

numbers, of one network on the test images (fractions, logits in nats):

  gamma          {"none": 0, "alg", "star", "pcv" where there is one}; "star" is an oracle
  accuracy       calibration -> {"micro", "balanced"} -> {"Y/Y", "S/Y", "U/Y", "S/S", "U/U"}
  ausuc          area under the seen-unseen curve, micro; the curve itself is
                 calibration.seen_unseen_curve(test/logits, test/labels, mask of absent)
  harmonic_mean  {"value", "gamma"}: the best on that curve
  probabilities  {"absent", "seen"} -> {"p_absent": mean P(U|x), "answered_absent": share}
  margins        of absent test images, mean logits: "own", "other" (largest other absent), their
                 difference "own_over_other", "seen" (largest seen), "seen_over_absent"
  ncm            {"cosine", "euclidean"} -> {"micro", "balanced", "ausuc"}; null for the sweep

The paper's figures from these: 2 table + curves of files; 3 ncm against accuracy["none"]; 4 epochs
of ft: accuracy["none"] U/U and ncm; 5, 6 epochs of ft: probabilities["absent"]; 7 table: ausuc; 8
networks of use "size" and "main"; 9 use "sweep"; 10 directions; 11 epochs of ft: margins.
"""

import os
import sys
from typing import Any, TextIO

from subtune_jax.studies.holistic_transfer import summary as holistic_record
from subtune_jax.studies.holistic_transfer import trainings as holistic_study

Row = dict[str, Any]


def run(
  config: Any, workdir: str | os.PathLike, *, command: str = "", stream: TextIO | None = None
) -> Row:
  """Runs the study, or goes on with one that was killed.

  Args:
    config: from `holistic_config.default()`.
    workdir: where everything is written.
    command: how the run was started, for the report.
    stream: where progress and the final table go; standard output by default.

  Returns:
    The record, as written to WORKDIR/results.json.

  Raises:
    ValueError: a config that makes no sense, a workdir of another config, bad weights or data.
  """
  study = holistic_study.start(config, workdir, stream or sys.stdout)
  trained = holistic_study.train_all(study)
  return holistic_record.finish(study, trained, command)
