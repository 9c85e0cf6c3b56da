"""The bundled model ``scenes``: its world and its recipe."""
