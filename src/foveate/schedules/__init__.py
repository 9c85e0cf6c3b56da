"""Searched schedules: how they are stored."""
