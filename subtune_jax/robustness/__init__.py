"""In and out of distribution: feature distortion, interpolation, selection, the linear theory."""
