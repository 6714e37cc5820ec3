"""Systems of the causal family."""
