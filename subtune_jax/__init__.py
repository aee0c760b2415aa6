"""Adapt a pretrained vision model in JAX: SubTuning, LP-FT and calibrated fine-tuning."""

__version__ = "0.1.0"
