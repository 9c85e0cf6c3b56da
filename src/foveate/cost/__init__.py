"""What a model and a method cost, from shapes and counts: FLOPs, bytes, and the roofline.

Nothing is run.
"""
