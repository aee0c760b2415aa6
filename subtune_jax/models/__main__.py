"""`python -m subtune_jax.models` lists the models; `--help` says what else."""

import sys

from subtune_jax import zoo

if __name__ == "__main__":
  sys.exit(zoo.main())
