"""Trained DyRate predictors: how they are stored, and those that come with the package."""
