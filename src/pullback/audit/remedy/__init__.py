"""What to do about a finding: the user's own line rewritten, tried, and offered as a patch.

``table`` is the one table of templates; it and what it is built from (``syntax``, ``draft``, the topics) import no
torch. ``advice`` and ``trial`` run what a template proposes.
"""
