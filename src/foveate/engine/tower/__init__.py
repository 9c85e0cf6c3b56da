"""The vision tower: how it is built, and its attention, recomputed."""
