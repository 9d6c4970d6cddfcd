"""Options that several command lines have."""

from __future__ import annotations

import argparse

__all__ = ["add_network"]


def add_network(parser: argparse.ArgumentParser) -> None:
    """Which network, how it is used, and where it runs: for those that take one's own pictures."""
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="export folder, run folder or segclip.bin (default: what make quickstart trained here)",
    )
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        help="name or YAML file (default: the one the checkpoint was exported with, else photo)",
    )
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (default: auto)"
    )
