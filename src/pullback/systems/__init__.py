"""Published systems rebuilt from the blocks, one file each: ``systems/<family>/<slug with underscores>.py``."""
