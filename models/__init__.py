"""The network, its parts and its files: checkpoints, exports, CLIP weights. No training loop or distributed set-up."""
