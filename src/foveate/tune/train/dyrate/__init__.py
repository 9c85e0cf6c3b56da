"""Training DyRate's predictor: the teacher-forced pass, its data, its loop."""
