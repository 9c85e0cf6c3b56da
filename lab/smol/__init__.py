"""``smol``: a VLM whose decoder is SmolLM2-135M-Instruct, a real language model."""
