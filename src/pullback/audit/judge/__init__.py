"""Which of what was seen is a fault, which is meant, and what each trained tensor without gradient is charged to."""
