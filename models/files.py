"""What the files are called that networks are written to."""

from __future__ import annotations

__all__ = ["CARD_FILE", "CONFIG_FILE", "PROGRAM_FILE", "RELEASED_FILE", "WEIGHTS_FILE"]

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
"""These three make an export folder."""
RELEASED_FILE = "segclip.bin"
"""A checkpoint of SegCLIP's authors."""
PROGRAM_FILE = "segclip.pt2"
"""A program of ``torch.export``."""
