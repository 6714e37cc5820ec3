"""Systems of the uncertainty family."""
