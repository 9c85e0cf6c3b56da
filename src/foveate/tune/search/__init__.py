"""Searching a schedule by an objective (how good), a cost (how dear), a strategy (what next)."""
