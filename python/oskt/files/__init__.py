"""Chain files, checkpoints and what they hold: written whole or not at all, nothing unpickled."""
