"""`python -m subtune_jax.models` lists the models; `--help` says what else."""

import sys

from subtune_jax import model_listing

if __name__ == "__main__":
  sys.exit(model_listing.main())
