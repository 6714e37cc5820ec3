"""Blocks of the dynamics family."""
