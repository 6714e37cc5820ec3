"""What a user reads: findings, messages, remedies, as text and HTML."""
