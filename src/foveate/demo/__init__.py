"""The bundled model ``scenes``: its world, its recipe, and how to load it."""
