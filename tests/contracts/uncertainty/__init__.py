"""Contracts of uncertainty, one file a topic."""
