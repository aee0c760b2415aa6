"""Many independent trainings, each a call of a `concurrent.futures.Executor`: here, or on Ray."""
