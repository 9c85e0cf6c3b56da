"""What is trained: predictors."""
