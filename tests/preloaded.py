"""What a process holds from which ranks are forked (``tests.ranks``).

Two things that each rank would load anew otherwise, some five seconds of a core: torch's compiler, which DeepSpeed
imports for an optimiser we do not use, and the tables with which torch counts arithmetic.
"""

import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
import mlflow  # noqa: F401

import segclip.trainer.loop  # noqa: F401
from segclip.models.flops import forward_flops
from segclip.models.sizes import segclip_quickstart

forward_flops(segclip_quickstart().config, words=16)
