"""``pullback audit --fix``: remedies of scripts, tried in a process that cannot change anything of the user's."""
