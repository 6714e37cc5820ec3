"""What a run shows: `style` (colours, axes), `figures` (those that every system draws), `files` (what is written)."""
