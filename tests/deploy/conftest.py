"""A small trained network, and its folder."""

import pytest

from subtune_jax.deploy import folder
from tests import deploy_network


@pytest.fixture(scope="session")
def trained():
  return deploy_network.make()


@pytest.fixture(scope="session")
def saved(trained, tmp_path_factory):
  """The folder of `trained`; tests copy it before they change it."""
  return folder.save(tmp_path_factory.mktemp("model") / "best", deploy_network.NETWORK, trained)
