"""Attention without eager mode: rows recomputed against cached keys, and masks of every backend."""
