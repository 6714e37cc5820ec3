"""Contracts of markets, one file a topic."""
