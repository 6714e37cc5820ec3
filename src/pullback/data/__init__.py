"""Embedded data sets: loaders only, cached arrays, no downloads at run time."""
