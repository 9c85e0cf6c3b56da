"""Pictures of figures, with matplotlib (``foveate[plots]``)."""
