"""Systems of the dynamics family."""
