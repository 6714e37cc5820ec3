"""The demo: a small pipeline with dead gradients, audited, relaxed and trained.

``pipeline`` is the user's code, which stays as it is; ``tour`` does what a user would do with it (``pullback demo``).
"""
