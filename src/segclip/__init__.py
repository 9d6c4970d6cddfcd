"""SegCLIP at scale: teach a CLIP vision transformer to segment any image by any words, from captions alone.

    import segclip
    model = segclip.load("runs/x/export")
    result = segclip.segment(model, image, ["cat", "sofa"])

These names are all that is public (docs/api.md). Everything else is reached by its module (``segclip.models``,
``segclip.eval``, ``segclip.data_pipelines``, ``segclip.kernels``, ``segclip.trainer``) and may change between versions.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segclip.eval.segment import Segmentation, segment
    from segclip.models.checkpoint import load
    from segclip.models.config import ModelConfig
    from segclip.models.segclip import SegCLIP

__all__ = ["ModelConfig", "SegCLIP", "Segmentation", "load", "segment"]
try:
    __version__ = version("segclip")
except PackageNotFoundError:
    # Run from a checkout that is not installed, as `make bench-gpu` may be.
    __version__ = "0+checkout"

# Imported when first used: `segclip-eval --help` should not wait for torch.
_HOMES = {
    "ModelConfig": "segclip.models.config",
    "SegCLIP": "segclip.models.segclip",
    "Segmentation": "segclip.eval.segment",
    "load": "segclip.models.checkpoint",
    "segment": "segclip.eval.segment",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(
            f"module 'segclip' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}"
        )
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
