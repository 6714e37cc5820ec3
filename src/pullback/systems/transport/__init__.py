"""Systems of the transport family."""
