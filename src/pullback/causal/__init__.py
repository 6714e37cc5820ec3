"""Blocks of the causal family."""
