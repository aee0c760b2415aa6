"""Many trainings: networks, data, grids of learning rates, seeds, and the folder of a run."""
