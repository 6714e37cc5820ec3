"""The demo: a small pipeline with dead gradients, audited, relaxed and trained."""
