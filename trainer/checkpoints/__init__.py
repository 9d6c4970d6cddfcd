"""Checkpoints of a run: written, kept, uploaded, found intact, resumed from."""
