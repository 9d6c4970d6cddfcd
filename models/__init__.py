"""The network, its parts and its files: checkpoints, exports, CLIP weights. No training loop or distributed set-up."""

from segclip.models.config import ModelConfig
from segclip.models.noise import InjectedNoise, KeyedNoise, Noise
from segclip.models.outputs import TrainOutput, VisionOutput
from segclip.models.segclip import SegCLIP
from segclip.models.sizes import segclip_quickstart, segclip_vit_b16, segclip_vit_b32, segclip_vit_l14

__all__ = [
    "InjectedNoise",
    "KeyedNoise",
    "ModelConfig",
    "Noise",
    "SegCLIP",
    "TrainOutput",
    "VisionOutput",
    "segclip_quickstart",
    "segclip_vit_b16",
    "segclip_vit_b32",
    "segclip_vit_l14",
]
