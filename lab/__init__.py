"""The laboratory: how the bundled models were made. Its commands run from a checkout: `python -m lab`."""
