"""Named protocols of VTAB-1k: what they set, and that a change of theirs is said."""

import numpy as np
import optax
import pytest

from configs import vtab as vtab_file
from subtune_jax import methods
from subtune_jax.studies.vtab import config as vtab_config
from subtune_jax.studies.vtab import protocols
from subtune_jax.training import optimizer

VIT = "backbone=vit_b16,weights=vit_b16/augreg-in21k"


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
def test_every_gradient_method_gets_the_rates_and_epochs_of_the_protocol(name):
  config = vtab_file.get_config(f"{VIT},protocol={name}")
  own = vtab_config.task_config(config, "dtd")
  gradient = ("ft", "lp_ft", "subtuning", "lora")
  assert len({(own[m].epochs, tuple(own[m].learning_rates)) for m in gradient}) == 1
  assert protocols.described(config).startswith(f"Protocol {name}: ")
  assert "Changed" not in protocols.described(config)
  config.optimizer.weight_decay = 0.5
  assert protocols.described(config).endswith("Changed: optimizer.weight_decay 0.5.")


def test_what_the_sources_say():
  petl = vtab_file.get_config(f"{VIT},protocol=petl")
  assert tuple(petl.ft.learning_rates) == (1e-3, 1e-2)
  assert (petl.ft.epochs, petl.batch_size, petl.backbone.options) == (100, 64, "drop_path=0.1")
  official = vtab_file.get_config("protocol=vtab")
  steps = official.ft.epochs * (1000 // official.batch_size)
  assert abs(steps - 1000) <= 40
  released = vtab_file.get_config("protocol=subtuning")
  assert released.search.epochs == released.subtuning.epochs == 20


def test_rates_in_steps_are_those_of_optax():
  found = optimizer.make_schedule("steps", 1000, 0.08)
  wanted = optax.piecewise_constant_schedule(1.0, {300: 0.1, 600: 0.1, 900: 0.1})
  for step in (80, 299, 301, 599, 601, 899, 901, 999):
    np.testing.assert_allclose(found(step), wanted(step), rtol=1e-6)
  assert found(40) == pytest.approx(0.5)
  with pytest.raises(ValueError, match=r"warmup is 0\.4"):
    methods.full_fine_tuning(1e-2, epochs=1, schedule="steps", warmup=0.4)


@pytest.mark.parametrize(
  ("argument", "message"),
  [("protocol=peft", "peft"), ("protocol=petl", "'petl' is of vision transformers")],
)
def test_what_does_not_fit_is_one_error(argument, message):
  with pytest.raises(ValueError, match=message):
    vtab_file.get_config(argument)
