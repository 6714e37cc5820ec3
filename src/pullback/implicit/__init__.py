"""Blocks of the implicit family."""
