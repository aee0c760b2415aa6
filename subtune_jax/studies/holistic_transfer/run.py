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

results.json is a `record.Record`. The paper's figures from it: 2 table + curves of files; 3 ncm
against accuracy["none"]; 4 epochs of ft: accuracy["none"] U/U and ncm; 5, 6 epochs of ft:
probabilities["absent"]; 7 table: ausuc; 8 networks of use "size" and "main"; 9 use "sweep"; 10
directions; 11 epochs of ft: margins.
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
