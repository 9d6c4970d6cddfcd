"""Peak memory and time of the contrastive loss on the CPU: in blocks, beside the definition with all logits in memory.

    python -m benchmarks.contrastive_memory

Forward and backward, float32. Each case runs in a process of its own; its memory is the largest resident memory less
that before the loss, when the features are there already.
"""

from __future__ import annotations

import argparse
import json
import time

from benchmarks.own_process import peak_resident_mib, run_alone
from benchmarks.report import Figure, arguments, print_figures, write_report

SHARE = 0.1
"""Of the plain version's memory."""


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, help="pairs (default: 16384; quick: 4096)")
    parser.add_argument("--width", type=int, default=512, help="of the features")
    parser.add_argument("--case", choices=("blocks", "plain"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    batch = given.batch or (4096 if given.quick else 16384)
    if given.case:
        print(json.dumps(measure(given.case, batch, given.width)))
        return
    blocks, plain = (
        run_alone("contrastive_memory", "--case", case, "--batch", batch, "--width", given.width)
        for case in ("blocks", "plain")
    )
    share = blocks["peak_mib"] / plain["peak_mib"]
    target = None if given.quick else SHARE
    name = f"{batch} x {given.width}"
    figures = {
        f"{name}: in blocks": Figure(blocks["peak_mib"], "MiB", beside=f"{blocks['seconds']:.1f} s"),
        f"{name}: all logits": Figure(plain["peak_mib"], "MiB", beside=f"{plain['seconds']:.1f} s"),
        f"{name}: share": Figure.at_most(
            share, "", target, f"losses {blocks['loss']:.6f} and {plain['loss']:.6f}"
        ),
    }
    print_figures("Memory of the contrastive loss on the CPU, beyond its inputs", figures)
    write_report(given.json, figures)


def measure(case: str, batch: int, width: int) -> dict[str, float]:
    """One forward and backward pass."""
    import torch

    from segclip.kernels.contrastive import contrastive_loss, contrastive_loss_reference

    function = {"blocks": contrastive_loss, "plain": contrastive_loss_reference}[case]

    def inputs(rows: int) -> list[torch.Tensor]:
        image, text = torch.randn((2, rows, width), generator=torch.Generator().manual_seed(0))
        return [tensor.requires_grad_(True) for tensor in (image, text, torch.tensor(1 / 0.07))]

    # What a first call loads is not the loss's.
    function(*inputs(2)).backward()
    features = inputs(batch)
    before = peak_resident_mib()
    begin = time.perf_counter()
    loss = function(*features)
    loss.backward()
    return {
        "peak_mib": peak_resident_mib() - before,
        "seconds": time.perf_counter() - begin,
        "loss": float(loss.detach()),
    }


if __name__ == "__main__":
    main()
