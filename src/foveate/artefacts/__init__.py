"""What searches and trainings leave: predictors and schedules, how they are stored, and the bundled
ones.
"""
