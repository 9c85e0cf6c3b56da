"""What a model looks at, and which tokens stay."""
