"""The use of a trained network: a folder that holds it, predictions, exports to other programs."""
