"""One rank of the two-process test: a training pass and backward under DistributedDataParallel, results to a
file.

Argument: folder for the results, a file each.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from segclip.kernels.contrastive import contrastive_loss
from segclip.models.names import released_name

HERE = Path(__file__).parent


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    spec = importlib.util.spec_from_file_location("golden_adapter", HERE / "adapter.py")
    assert spec is not None
    assert spec.loader is not None
    adapter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(adapter)
    cfg = json.loads((HERE / "data" / "configs.json").read_text())["A"]
    state = dict(np.load(HERE / "data" / "A_state.npz"))
    arrays = dict(np.load(HERE / "data" / "A_ws2.npz"))
    inputs = {key.removeprefix(f"rank{rank}/"): value for key, value in arrays.items()}
    inputs.update(
        {
            key.removeprefix(f"fixed/rank{rank}/"): value
            for key, value in arrays.items()
            if f"/rank{rank}/" in key
        }
    )
    model = DistributedDataParallel(adapter.model_of(cfg, state).train())
    out = adapter.train_pass(model, inputs, "image")
    contrastive = contrastive_loss(
        out.image_embed_BE, out.text_embed_BE, out.logit_scale, group=dist.group.WORLD
    )
    total = contrastive + out.loss_superpixel + out.loss_reconstruction
    total.backward()
    gradients = {
        f"grad/{released_name(name)}": parameter.grad.numpy()
        for name, parameter in model.module.named_parameters()
        if parameter.grad is not None
    }
    np.savez(
        Path(sys.argv[1]) / f"rank{rank}.npz",
        loss_total=total.detach().numpy(),
        loss_contrastive=contrastive.detach().numpy(),
        **gradients,
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
