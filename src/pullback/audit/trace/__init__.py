"""What a program did: every operation as a node, by line, and the graph of its values."""
