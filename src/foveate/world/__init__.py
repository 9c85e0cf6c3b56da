"""The drawn scenes that the bundled models know: objects, pictures, words."""
