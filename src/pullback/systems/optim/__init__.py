"""Systems of the optim family."""
