"""The contrastive loss on a GPU at the batch sizes of large runs, beside plain torch run eagerly and compiled.

    python -m benchmarks.gpu_contrastive --json benchmarks/results/gpu_contrastive.json

32,768 and 65,536 pairs of 512 numbers in bfloat16, all on one card: time and memory of forward and backward. The plain
version runs where the card has room for its logits.
"""

from __future__ import annotations

import sys
from functools import partial

import torch

from benchmarks.kernel_cases import Case
from benchmarks.report import Figure, arguments, print_figures, write_report

__all__ = ["contrastive_cases", "contrastive_figures"]

BATCHES = (32768, 65536)
WIDTH = 512
MEMORY_MIB = 954
"""1 GB, at the larger batch."""


def main() -> None:
    """Measure, print the tables, write the JSON."""
    given = arguments(__doc__).parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: no GPU here, so there is nothing to measure")
    write_report(given.json, contrastive_figures(given.quick))


def contrastive_cases(batch: int, device: str, dtype: torch.dtype) -> list[Case]:
    """The loss of one process."""
    from segclip.kernels.contrastive import contrastive_loss_reference, contrastive_loss_unchecked

    image, text = torch.randn(2, batch, WIDTH, device=device).to(dtype)
    # Some correlation, so that the loss is not that of chance.
    text = text + 0.3 * image
    logits = 4 * batch**2
    room = torch.cuda.mem_get_info()[1] if device == "cuda" else 0
    return [
        Case(
            f"contrastive N={batch}",
            tuple(tensor.requires_grad_(True) for tensor in (image, text, torch.tensor(14.3, device=device))),
            partial(contrastive_loss_unchecked, kernels=True),
            contrastive_loss_reference,
            # One product forward; the same again and two more backward.
            operations=4 * 2 * batch**2 * WIDTH,
            # Logits, two logarithms of softmax, and as many gradients.
            eager_fits=device != "cuda" or 6 * logits < room,
        )
    ]


def contrastive_figures(quick: bool) -> dict[str, Figure]:
    """Rows of the table."""
    from benchmarks.gpu_kernels import measure, measure_ceilings

    ceilings = measure_ceilings()
    figures: dict[str, Figure] = {}
    for batch in BATCHES[:1] if quick else BATCHES:
        for case in contrastive_cases(batch, "cuda", torch.bfloat16):
            own = measure(case, ceilings, quick)
            name = f"{case.name}: kernel, memory"
            if batch == max(BATCHES):
                mib = own[name].value
                own[name] = Figure(mib, "MiB", MEMORY_MIB, mib <= MEMORY_MIB, "beyond its inputs")
            print_figures(case.name, own)
            figures |= own
        torch.cuda.empty_cache()
    return figures


if __name__ == "__main__":
    main()
