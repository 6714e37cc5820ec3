"""Blocks of the render family."""
