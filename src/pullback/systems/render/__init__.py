"""Systems of the render family."""
