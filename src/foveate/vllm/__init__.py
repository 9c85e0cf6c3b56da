"""The second engine: the same methods inside vLLM, as its plugin (docs/serving.md)."""
