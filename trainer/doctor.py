"""Checks of what a run needs of its machine, each with what to mend."""

from __future__ import annotations

import importlib.metadata
import math
import os
import shutil
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from segclip.console import Finding, Status, UserError, one_line
from segclip.credentials import without_credentials
from segclip.trainer.config import RunConfig
from segclip.trainer.tracking import TrackingConfig, tracking_uri

__all__ = ["check_configuration", "check_environment"]

DEEPSPEED = (0, 19, 6)
"""The first release that reduces gradients once over several backward passes."""
SHARED_MEMORY_A_RANK = 66 * 2**20
"""Of DeepSpeed's collectives on CPUs."""
CONNECT_SECONDS = 5.0
PROBE = "segclip-doctor"
"""Object that is written and deleted to see whether that is allowed."""


def check_environment(config: RunConfig | None = None) -> Iterator[Finding]:
    """Versions, devices, compilers and shared memory; ``config`` decides what of it is needed."""
    yield _version("torch")
    yield _deepspeed()
    on_gpu = torch.cuda.is_available()
    yield _version("triton", needed=on_gpu, why="the kernels of this package run on GPUs with it alone")
    yield from _devices()
    yield _collectives(on_gpu)
    yield from _compilers(config, on_gpu)
    yield _shared_memory()


def check_configuration(config: RunConfig) -> Iterator[Finding]:
    """Disk of the run's folder, store of its checkpoints, shards, data set of the evaluation, MLflow."""
    yield _disk(config)
    if config.checkpoint.upload is not None:
        yield _upload(config.checkpoint.upload)
    yield from _data(config)
    if config.evaluation.dataset is not None:
        yield _evaluation(config)
    yield _mlflow(config.tracking, config.run_dir)


def _version(package: str, needed: bool = True, why: str = "") -> Finding:
    try:
        return Finding(package, "ok", importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        status: Status = "broken" if needed else "ok"
        return Finding(
            package, status, "not installed" + (f": {why}" if why else ""), f"pip install {package}"
        )


def _deepspeed() -> Finding:
    found = _version("deepspeed")
    if found.status == "ok":
        numbers = tuple(int(part) for part in found.text.split("+")[0].split(".")[:3] if part.isdigit())
        if numbers < DEEPSPEED:
            wanted = ".".join(map(str, DEEPSPEED))
            return Finding("deepspeed", "broken", found.text, f"pip install 'deepspeed>={wanted}'")
    return found


def _devices() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        if Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists():
            yield Finding(
                "GPU",
                "broken",
                f"there is one, but torch {torch.__version__} does not see it",
                "install a torch built for the driver here (nvidia-smi shows its CUDA version), or update the driver",
            )
        else:
            yield Finding("GPU", "warning", f"none: training on {os.cpu_count()} CPU cores")
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        text = f"{torch.cuda.get_device_name(number)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        if free < total / 2:
            yield Finding(f"GPU {number}", "warning", text, "another program uses it: nvidia-smi shows which")
        else:
            yield Finding(f"GPU {number}", "ok", text)


def _collectives(on_gpu: bool) -> Finding:
    if on_gpu and not dist.is_nccl_available():
        return Finding("NCCL", "broken", "this torch has none", "install a torch built with NCCL")
    if on_gpu:
        version = ".".join(map(str, torch.cuda.nccl.version()))
        return Finding("NCCL", "ok", version)
    if not dist.is_gloo_available():
        return Finding("gloo", "broken", "this torch has none", "install a torch built with gloo")
    return Finding("gloo", "ok", "ranks on CPUs talk through it; NCCL is for GPUs")


def _compilers(config: RunConfig | None, on_gpu: bool) -> Iterator[Finding]:
    """DeepSpeed compiles its operations when they are first used."""
    offloads = config is not None and (
        config.zero.offload_optimizer == "cpu" or config.optimizer.implementation == "cpu"
    )
    fused = config is not None and config.optimizer.implementation == "deepspeed"
    need = "CPU Adam" if offloads else "DeepSpeed's fused Adam" if fused else ""
    for tool, remedy in (
        (os.environ.get("CXX", "c++"), "install a C++ compiler (g++), or name one in CXX"),
        ("ninja", "pip install ninja"),
    ):
        path = shutil.which(tool)
        if path is not None:
            yield Finding(tool, "ok", path)
        elif need:
            yield Finding(tool, "broken", f"not found, but {need} is compiled at the first start", remedy)
        else:
            yield Finding(tool, "warning", "not found: ranks on CPUs talk through gloo, more slowly", remedy)
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.is_file() and need:
        yield Finding(
            "Python.h", "broken", f"not in {header.parent}", "install Python's headers (python3-dev)"
        )
    if fused and on_gpu:
        from torch.utils.cpp_extension import CUDA_HOME

        path = shutil.which("nvcc") or (CUDA_HOME and shutil.which(str(Path(CUDA_HOME, "bin", "nvcc"))))
        remedy = "install the CUDA toolkit, or set optimizer.implementation=fused, which is torch's own"
        yield Finding("nvcc", "ok", path) if path else Finding("nvcc", "broken", "not found", remedy)


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("shared memory", "ok", "no /dev/shm on this system")
    free = shutil.disk_usage(folder).free
    needed = SHARED_MEMORY_A_RANK * max(1, torch.cuda.device_count())
    text = f"{_size(free)} free in {folder}"
    if free < needed:
        return Finding(
            "shared memory",
            "broken",
            text,
            f"at least {_size(needed)} are needed: in a container, start it with --shm-size=8g",
        )
    return Finding("shared memory", "ok", text)


def _disk(config: RunConfig) -> Finding:
    """Room for all checkpoints that are kept and the one that is being written."""
    from segclip.trainer.memory import count_parameters

    folder = Path(config.run_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    counts = count_parameters(config)
    # Moments and float32 weights of what trains, and the network's own weights, in float32 at most.
    checkpoint = 12 * counts.trained + 4 * (counts.trained + counts.frozen)
    kept = config.checkpoint
    number = kept.keep_last + (2 if config.evaluation.every and kept.keep_best else 1)
    if kept.keep_every:
        number += config.train.steps // math.lcm(kept.every, kept.keep_every)
    needed = checkpoint * number
    free = shutil.disk_usage(folder).free
    text = f"{_size(free)} free at {folder}; {number} checkpoints take at most {_size(needed)}"
    if not os.access(folder, os.W_OK):
        return Finding("run_dir", "broken", f"{folder} may not be written to", "give another run_dir")
    if free < needed:
        return Finding(
            "run_dir", "broken", text, "make room, lower checkpoint.keep_last or give another run_dir"
        )
    return Finding("run_dir", "ok", text)


def _upload(url: str) -> Finding:
    """Whether checkpoints can be listed, written and deleted there."""
    from segclip.data_pipelines.storage.store import open_store
    from segclip.trainer.checkpoints.store import newest

    try:
        store = open_store(url, create=True)
        store.put(PROBE, b"segclip-doctor")
        store.delete([PROBE])
        found = newest(url)
    except (ValueError, OSError) as error:
        return Finding(
            "checkpoint.upload", "broken", one_line(error), "mend it, or set checkpoint.upload=null"
        )
    return Finding("checkpoint.upload", "ok", f"{url}, newest checkpoint there: {found or 'none'}")


def _data(config: RunConfig) -> Iterator[Finding]:
    from segclip.data_pipelines.manifest import read_manifest

    single = [config.data.shards] if config.data.shards is not None else []
    for url in (*single, *(source.shards for source in config.data.sources)):
        try:
            manifest = read_manifest(url, allow_pipe=config.data.allow_pipe)
        except (ValueError, OSError, UserError) as error:
            yield Finding(
                "shards",
                "broken",
                one_line(error),
                "mend data.shards or data.sources, or what lies there",
            )
            continue
        samples = sum(entry.count for entry in manifest.shards)
        yield Finding("shards", "ok", f"{url}: {len(manifest.shards):,} shards, {samples:,} samples")


def _evaluation(config: RunConfig) -> Finding:
    from segclip.trainer.scoring import check_evaluation

    try:
        check_evaluation(config.evaluation)
    except (ValueError, OSError) as error:
        return Finding(
            "evaluation", "broken", one_line(error), "mend it, or set evaluation.dataset=null to score later"
        )
    return Finding("evaluation", "ok", f"{config.evaluation.dataset}, protocol {config.evaluation.protocol}")


def _mlflow(config: TrackingConfig, run_dir: str) -> Finding:
    """A server that is down stops no run, so it is no more than a warning."""
    if not config.enabled:
        return Finding("MLflow", "ok", "off (tracking.enabled=false)")
    uri = tracking_uri(config, run_dir)
    parts = urlsplit(uri)
    shown = without_credentials(uri)
    if parts.scheme not in ("http", "https"):
        return Finding("MLflow", "ok", f"{shown}, a store without a server")
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=CONNECT_SECONDS) as answer:
            return Finding("MLflow", "ok", f"{shown} answers ({answer.status})")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            return Finding("MLflow", "warning", f"{shown} answers {error.code}", remedy)
        return Finding("MLflow", "ok", f"{shown} answers ({error.code})")
    except (OSError, ValueError) as error:
        return Finding(
            "MLflow",
            "warning",
            f"{shown} does not answer ({one_line(error)}): a run trains on and loses its metrics there",
            "start the server, set tracking.uri or MLFLOW_TRACKING_URI, or leave both out for a file in run_dir",
        )


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
