"""lmms-eval's models under a method (``foveate[lmms]``): its entry point, which imports nothing of it until asked."""
