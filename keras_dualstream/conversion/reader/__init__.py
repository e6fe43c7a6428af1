"""Checkpoint files to arrays; nothing in a file is ever executed."""
