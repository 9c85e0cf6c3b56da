"""``smol``: SmolLM2-135M-Instruct from where it is installed, and around it what we trained."""
