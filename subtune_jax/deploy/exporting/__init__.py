"""A trained network as a program or a file of weights that runs without this library."""
