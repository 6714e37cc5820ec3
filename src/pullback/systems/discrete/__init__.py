"""Systems of the discrete family."""
