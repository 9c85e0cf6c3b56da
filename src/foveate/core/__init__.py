"""Pure tensors: what a decision sees, and how decisions are composed. Imports torch alone."""
