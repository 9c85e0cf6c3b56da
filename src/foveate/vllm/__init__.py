"""The second engine: the same methods inside vLLM, as its plugin. README.md beside this file says how it works."""
