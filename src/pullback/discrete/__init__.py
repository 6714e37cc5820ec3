"""Blocks of the discrete family."""
