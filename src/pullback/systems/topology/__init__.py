"""Systems of the topology family."""
