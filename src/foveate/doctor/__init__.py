"""Whether and how foveate works with a model."""
