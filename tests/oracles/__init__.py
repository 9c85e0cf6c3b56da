"""Independent oracles: what is dropped is what masking would have dropped."""
