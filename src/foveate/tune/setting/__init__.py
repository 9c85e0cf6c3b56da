"""`foveate tune`: a setting for a model and its data, chosen on one part and certified on another."""
