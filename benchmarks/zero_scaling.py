"""What ZeRO divides and what it sends, with 1, 2 and 4 processes on the CPU: both against the formulas.

    python -m benchmarks.zero_scaling
    python -m benchmarks.zero_scaling --quick   # fewer processes and a smaller network

Memory of a rank, of P bytes of trained float32 parameters, on W ranks:

    stage 1 and up   moments of AdamW          2 P / W
    stage 2 and up   gradients                   P / W    held when the backward pass over all samples is over
    stage 3          parameters                  P / W    held between steps

At stage 2 a matrix that lies across the border of two ranks' parts is held whole by both: a few percent here, and less
the larger the network.

Stage 3 keeps parameters of fewer than 100,000 elements whole on every rank (DeepSpeed's
``stage3_param_persistence_threshold``); they are left out of its figures, and their share is printed.

Bytes that a rank sends in a step, the collectives being rings: an all-reduce of n bytes sends 2 (W - 1) / W n, a
reduce-scatter or an all-gather that ends with n bytes (W - 1) / W n.

    stage 0      gradients all-reduced                                                    2 (W - 1) / W P
    stage 1, 2   gradients all-reduced (DeepSpeed does, with its default settings),
                 updated parameters all-gathered                                          3 (W - 1) / W P
    stage 3      parameters all-gathered once for forward and backward together (they fit
                 within ``stage3_max_reuse_distance``), gradients reduce-scattered;
                 small parameters all-gathered after the update                           2 (W - 1) / W P
    contrastive  texts gathered forward and backward, their gradients reduce-scattered,
                 four numbers a sample: b samples of a rank, E wide                       (W - 1) b (3 E + 4) 4

and that does not depend on the number of micro-batches at stages 0, 1 and 2. At stage 3 each pass gathers what it needs
of the parameters anew.

Bytes are counted at ``torch.distributed``, whose functions are wrapped before DeepSpeed takes hold of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import ROOT, Figure, arguments, print_figures, write_report
from benchmarks.training_case import random_batch, run_config
from segclip.rendezvous import free_port

if TYPE_CHECKING:
    from segclip.models.config import ModelConfig

WITHIN = 0.10
GLOBAL_BATCH, WORDS, EMBED = 16, 16, 128
MICRO_BATCHES = 2
WARM_UP = 2
"""Steps before the counted one: at stage 3 DeepSpeed learns the order of modules in the first."""
MEMORY = {"moments": 1, "gradients": 2, "parameters": 3}
"""What is divided, and from which stage on."""


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--processes", type=int, nargs="+", help="numbers of ranks (default: 1 2 4; quick: 1 2)"
    )
    parser.add_argument(
        "--rank-writes", metavar="PATH", help="(internal) be one rank and write what was counted"
    )
    given = parser.parse_args()
    if given.rank_writes:
        be_a_rank(Path(given.rank_writes), given.quick)
        return
    numbers = given.processes or ([1, 2] if given.quick else [1, 2, 4])
    if 1 not in numbers or any(GLOBAL_BATCH % (number * MICRO_BATCHES) for number in numbers):
        parser.error(
            f"--processes must hold 1, and each divide {GLOBAL_BATCH // MICRO_BATCHES}; got {numbers}"
        )
    found = {number: run(number, given.quick) for number in numbers}
    figures = memory_figures(found, targets=not given.quick) | traffic_figures(found)
    print_figures("ZeRO on the CPU: memory and traffic of a rank", figures)
    write_report(given.json, figures)


def memory_figures(found: dict[int, Any], targets: bool = True) -> dict[str, Figure]:
    """Bytes of a rank over those of a single process, which are to fall as one over the number of ranks.

    Args:
        targets: whether they are held against that. A small network is divided less evenly.
    """
    figures = {}
    for what, stage in MEMORY.items():
        alone = found[1][str(stage)][what]
        for number in sorted(set(found) - {1}):
            value, target = found[number][str(stage)][what] / alone, 1 / number
            figures[f"stage {stage}: {what} of a rank, {number} processes / 1"] = Figure(
                value,
                "",
                target if targets else None,
                abs(value / target - 1) <= WITHIN if targets else None,
                f"{alone / 2**20:.1f} MiB on 1 process",
            )
    case = found[1]["3"]
    figures["stage 3: small parameters, whole on each rank"] = Figure(
        case["small"] / (case["small"] + case["parameters"]),
        "",
        beside="left out of the figures of parameters",
    )
    return figures


def traffic_figures(found: dict[int, Any]) -> dict[str, Figure]:
    """Bytes sent over the formula, and those of the cached step over those of the plain one."""
    figures = {}
    for number in sorted(set(found) - {1}):
        for stage, case in found[number].items():
            expected = formula(int(stage), number, case)
            value = case["plain"] / expected
            figures[f"stage {stage}: bytes sent / formula, {number} processes"] = Figure(
                value,
                "",
                1.0,
                abs(value - 1) <= WITHIN,
                f"{case['plain'] / 2**20:.2f} MiB a step and rank; formula {expected / 2**20:.2f} MiB",
            )
            again = case["cached"] / case["plain"]
            held = stage != "3"
            figures[f"stage {stage}: bytes of {MICRO_BATCHES} passes / 1, {number} processes"] = Figure(
                again, "", 1.0 if held else None, abs(again - 1) <= WITHIN if held else None
            )
    return figures


def formula(stage: int, ranks: int, case: dict[str, float]) -> float:
    """Bytes that a rank sends in a step; see the top of this file."""
    parameters = case["trained"]
    times = {0: 2, 1: 3, 2: 3, 3: 2}[stage]
    contrastive = (ranks - 1) * (GLOBAL_BATCH // ranks) * (3 * EMBED + 4) * 4
    return times * (ranks - 1) / ranks * parameters + contrastive


def run(number: int, quick: bool) -> dict[str, Any]:
    """Start so many processes; what they counted, by stage."""
    print(f"{number} processes ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counted.json"
        command = [sys.executable, "-m", "benchmarks.zero_scaling", "--rank-writes", str(path)]
        common = {
            # More threads than cores would wait for one another.
            "OMP_NUM_THREADS": max((os.cpu_count() or 1) // number, 1),
            "WORLD_SIZE": number,
            "LOCAL_WORLD_SIZE": number,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
        }
        processes = [
            subprocess.Popen(
                [*command, *(["--quick"] if quick else [])],
                cwd=ROOT,
                env={
                    **os.environ,
                    **{n: str(v) for n, v in (common | {"RANK": rank, "LOCAL_RANK": rank}).items()},
                },
                stdout=subprocess.DEVNULL,
            )
            for rank in range(number)
        ]
        try:
            codes = [process.wait() for process in processes]
        finally:
            for process in processes:
                process.kill()
        if any(codes):
            raise SystemExit(f"error: ranks ended with {codes}")
        counted: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return counted


def be_a_rank(path: Path, quick: bool) -> None:
    """Count at every stage; the first rank writes the largest number of any rank."""
    import torch
    import torch.distributed as dist

    sent = Sent()
    sent.watch()
    from segclip.trainer.distributed import start

    ranks = start()
    counted: dict[int, dict[str, float]] = {}
    for stage in range(4):
        case = count(network(quick), stage, ranks, sent)
        largest = torch.tensor(list(case.values()), dtype=torch.float64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        counted[stage] = dict(zip(case, largest.tolist(), strict=True))
        if ranks.is_first:
            print(f"  stage {stage} counted", file=sys.stderr, flush=True)
    if ranks.is_first:
        path.write_text(json.dumps(counted), encoding="utf-8")


def network(quick: bool) -> ModelConfig:
    """Nearly all of it in matrices of 100,000 elements and more."""
    from segclip.models.config import ModelConfig

    # The narrowest of which even the smallest matrices, 320 x 320 and 160 x 640, have 100,000 elements.
    width, layers = 320, 3 if quick else 16
    return ModelConfig(
        image_size=32,
        patch_size=8,
        vision_width=width,
        vision_heads=4,
        vision_layers=layers,
        first_stage_layers=layers - 2,
        centers=4,
        embed_dim=EMBED,
        text_width=width,
        text_heads=4,
        text_layers=layers,
        context_length=WORDS,
        vocab_size=512,
        decoder_depth=1,
    )


def count(model: ModelConfig, stage: int, ranks: Any, sent: Sent) -> dict[str, float]:
    """Bytes of one rank: held, and sent in a plain and in a cached step."""
    from segclip.trainer.engine import build_engine, set_learning_rates
    from segclip.trainer.step import compute_gradients

    config = run_config(model, GLOBAL_BATCH, words=WORDS, stage=stage)
    engine = build_engine(config, ranks)
    local_batch = GLOBAL_BATCH // ranks.world_size
    case: dict[str, float] = {}
    for name, micro_batch in (("plain", local_batch), ("cached", local_batch // MICRO_BATCHES)):
        for step in range(WARM_UP + 1):
            batch = random_batch(config, local_batch, step * GLOBAL_BATCH + ranks.rank * local_batch)
            set_learning_rates(engine, 1.0)
            before = sent.bytes
            compute_gradients(engine, batch, config.seed, config.loss, micro_batch)
            if name == "plain":
                case["gradients"] = size(gradients(engine))
            engine.step()
            case[name] = sent.bytes - before
    parameters = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    case["trained"] = sum(getattr(p, "ds_numel", p.numel()) * 4 for p in parameters)
    case["moments"] = size(
        value
        for state in engine.optimizer.state.values()
        for name, value in state.items()
        if name.startswith("exp_avg")
    )
    small = [p for p in parameters if getattr(p, "ds_persist", False)]
    case["small"] = sum(p.ds_numel * 4 for p in small)
    # What stage 3 holds of a parameter is its own part, and the whole for as long as it is needed.
    case["parameters"] = sum(
        4 * (p.numel() + (p.ds_tensor.numel() if hasattr(p, "ds_tensor") else 0))
        for p in parameters
        if not getattr(p, "ds_persist", False)
    )
    engine.destroy()
    return case


def gradients(engine: Any) -> Iterable[Any]:
    """All that is held of gradients between backward pass and optimiser step."""
    yield from (p.grad for p in engine.module.parameters() if p.grad is not None)
    for group in getattr(engine.optimizer, "averaged_gradients", {}).values():
        yield from group or ()


def size(tensors: Iterable[Any]) -> int:
    """Bytes of tensors that may be views of one another's memory."""
    storages = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class Sent:
    """Bytes that this rank has sent by the collectives of ``torch.distributed``."""

    def __init__(self) -> None:
        self.bytes = 0.0
        self._inside = False

    def watch(self) -> None:
        """Wrap the functions; those that call one another count once."""
        import torch.distributed as dist
        from torch.distributed import distributed_c10d

        def whole(tensor: Any) -> float:
            return float(tensor.numel() * tensor.element_size())

        def part() -> float:
            return (dist.get_world_size() - 1) / dist.get_world_size()

        costs: dict[str, Callable[..., float]] = {
            "all_reduce": lambda tensor, *_, **__: 2 * part() * whole(tensor),
            "all_gather_into_tensor": lambda output_tensor, *_, **__: part() * whole(output_tensor),
            "_all_gather_base": lambda output_tensor, *_, **__: part() * whole(output_tensor),
            "all_gather": lambda tensor_list, *_, **__: part() * sum(map(whole, tensor_list)),
            "reduce_scatter_tensor": lambda output, input, *_, **__: part() * whole(input),
            "_reduce_scatter_base": lambda output, input, *_, **__: part() * whole(input),
            "all_to_all_single": lambda output, input, *_, **__: part() * whole(input),
            # Along a chain of ranks all but the last one pass it on.
            "broadcast": lambda tensor, *_, **__: part() * whole(tensor),
            "reduce": lambda tensor, *_, **__: part() * whole(tensor),
        }
        for name, cost in costs.items():
            wrapped = self._wrap(getattr(distributed_c10d, name), cost)
            for module in (dist, distributed_c10d):
                if hasattr(module, name):
                    setattr(module, name, wrapped)

    def _wrap(self, function: Callable[..., Any], cost: Callable[..., float]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if self._inside:
                return function(*given, **named)
            self.bytes += cost(*given, **named)
            self._inside = True
            try:
                return function(*given, **named)
            finally:
                self._inside = False

        return call


if __name__ == "__main__":
    main()
