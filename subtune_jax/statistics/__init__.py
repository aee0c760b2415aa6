"""Intervals and tests that several rooms share: bootstraps, and means over folds that overlap."""
