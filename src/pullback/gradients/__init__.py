"""Blocks of the gradients family."""
