"""The decoder run from any layer on, teacher forced: what search and training repeat."""
