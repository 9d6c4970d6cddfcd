"""Files of training checkpoints are looked through before DeepSpeed unpickles them.

DeepSpeed loads its files with ``weights_only=False``: whatever function a pickle names is called. torch can list these
names without calling any (``torch.serialization.get_unsafe_globals_in_checkpoint``). A file may name what torch's
own ``weights_only`` loader takes (tensors, plain containers) and what DeepSpeed's optimisers put beside it; with
anything else, or when it is no zip file of ``torch.save``, nothing of it is loaded.

Checksums do not replace this: whoever changes a file can change them too.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

__all__ = ["ALLOWED", "check_pickles", "write_stages_by_value"]

# Plain data of DeepSpeed, as found in its checkpoints at stages 0 to 3 in fp32, bf16 and fp16.
ALLOWED = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)


def check_pickles(folder: str | Path) -> None:
    """Refuse a checkpoint that would run code when DeepSpeed loads it. Nothing is loaded and nothing runs.

    Args:
        folder: all files below it that end in ``.pt`` are looked through.

    Raises:
        ValueError: a file names something that is not known to be data, or is not one of ``torch.save``; says which.
    """
    for path in sorted(Path(folder).rglob("*.pt")):
        try:
            named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"checkpoint file {path} is not one that DeepSpeed has written ({reason}): it could run code when it "
                f"is loaded, so it is not; {_REMEDY}"
            ) from error
        strange = sorted(set(named) - ALLOWED)
        if strange:
            raise ValueError(
                f"checkpoint file {path} names {', '.join(strange)}, which could run code when it is loaded, so it is "
                f"not; {_REMEDY}"
            )


def write_stages_by_value() -> None:
    """Let this process write DeepSpeed's ZeRO stages so that ``check_pickles`` takes them, whatever its Python.

    Python 3.11.0 to 3.11.3 pickle a member of an Enum as ``getattr(class, name)``, and no file may name ``getattr``.
    """
    from deepspeed.runtime.zero.config import ZeroStageEnum

    ZeroStageEnum.__reduce_ex__ = lambda stage, protocol: (type(stage), (stage.value,))


_REMEDY = "use a checkpoint that you trust; to train anew, give another run_dir"
