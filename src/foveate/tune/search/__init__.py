"""Searching a schedule: an objective (how good), a cost (how dear), a strategy (what to try next)."""
