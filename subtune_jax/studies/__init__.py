"""One file per kind of run: reads the config, calls the other rooms, leaves a record behind."""
