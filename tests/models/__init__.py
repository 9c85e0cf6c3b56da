"""Tiny models of every family, with real processors made offline, in memory or saved to a folder."""
