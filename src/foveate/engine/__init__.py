"""The only place that touches a transformers model."""
