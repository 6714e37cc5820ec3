"""Systems of the implicit family."""
