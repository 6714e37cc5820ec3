"""Systems of the gradients family."""
