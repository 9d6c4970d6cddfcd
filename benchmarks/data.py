"""The data path beside what people use instead: samples a second, superpixels, reading from S3, memory over epochs.

    python -m benchmarks.data --quick
    python -m benchmarks.data --only raw shaped

A real S3 server (SeaweedFS) runs on the loopback interface. Photos are other crops of the pictures inside
scikit-image's wheel, 341 x 256 pixels, JPEG of quality 90. What is compared takes turns within one process; figures
are medians over rounds, ratios medians of the ratios of a round.

end to end   From opening the set to the last batch of one pass, on one core (all that the stack runs, its threads and
             its ``curl`` or ``cat`` included; the server has the others). Ours: ranged reads with prefetch, SHA-256 of
             every shard, decode, random crop of 50 to 100 %, bicubic and antialiased to 224, uint8; tokens; patch
             labels by vote from the stored map. Normalising is left to the device. Plain: webdataset with ``pipe:``,
             Pillow, torchvision's RandomResizedCrop (bicubic), ToTensor, Normalize, open_clip's tokenizer; it has no
             checksums and passes over the maps unread, as a recipe without superpixels would: the ratio is of our
             stream with them to one without. A second ratio has it read, crop and reduce the maps too. Both shuffle
             1000 samples. That each gave every sample exactly once is checked in every pass.
superpixels  Where shards store no maps: fast-slic (64 regions) beside scikit-image's Felzenszwalb (224, 0.9, 224), the
             computation alone, on the same pictures; and end to end, both on the whole picture before the crop.
raw          Whole shards of random bytes to memory, one after the other, all cores open to client and server; see
             ``benchmarks.s3_clients``. Their sums are compared in a round before.
shaped       The same through a proxy that lets 90 MB/s a connection through and begins every answer 30 ms late, beside
             one stream by obstore.
memory       Resident memory of the main process and two workers in epochs 5 and 50 of one stream over a small set that
             is read from S3 anew in every epoch.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.data_cases import run_case
from benchmarks.photo_sets import write_photo_set
from benchmarks.report import Figure, arguments, leave_out, print_figures, write_report
from benchmarks.s3_clients import OURS
from segclip.data_pipelines.storage.s3_server import check_server, s3_server
from segclip.data_pipelines.storage.store import open_store, upload

PARTS = ("files", "s3", "superpixels", "raw", "shaped", "memory")
END_TO_END, SUPERPIXELS, RAW, SHAPED, MEMORY = 2.0, 15.0, 0.9, 4.0, 1.02
EPOCHS = (5, 50)
WORKERS = 2
# Pictures that are made; larger sets repeat them.
DISTINCT = {True: 96, False: 400}


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, help="timed rounds of each case (default: 7; quick: 1)")
    given = parser.parse_args()
    rounds = given.rounds if given.rounds is not None else (1 if given.quick else 7)
    if rounds < 1:
        parser.error(f"--rounds must be at least 1, got {rounds}")
    if shutil.which("curl") is None:
        leave_out("there is no curl, through which the plain stack reads", given.json)
    try:
        check_server()
    except ValueError as error:
        leave_out(str(error), given.json)
    figures = measure(given.only or PARTS, rounds, given.quick)
    print_figures("Data path" + (" (quick: not for comparison)" if given.quick else ""), figures)
    write_report(given.json, figures)


def measure(parts: Sequence[str], rounds: int, quick: bool) -> dict[str, Figure]:
    """The figures of some parts; without targets if the sizes are those of ``--quick``."""
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory(prefix="segclip-data-") as name:
        folder = Path(name)
        with s3_server(folder / "server") as server:
            os.environ.update(server.environment)
            if {"files", "s3"} & set(parts):
                _say("photos ...")
                shards, per_shard = (3, 96) if quick else (12, 512)
                write_photo_set(folder / "stored", shards, per_shard, distinct=DISTINCT[quick])
                upload(folder / "stored", f"{server.url}/stored")
            for place, url in (("files", str(folder / "stored")), ("s3", f"{server.url}/stored")):
                if place in parts:
                    _say(f"end to end, {place} ...")
                    stacks = ["ours", "plain", "plain with maps"]
                    found = run_case(
                        "end_to_end", url=url, superpixels="stored", stacks=stacks, rounds=rounds
                    )
                    figures |= end_to_end_figures(place, found)
            if "superpixels" in parts:
                _say("superpixels ...")
                step = run_case("superpixel_step", pictures=6 if quick else 30, rounds=rounds)
                write_photo_set(folder / "bare", 1, 32 if quick else 192, maps=False)
                stacks = ["ours", "plain with maps"]
                whole = run_case(
                    "end_to_end",
                    url=str(folder / "bare"),
                    superpixels="computed",
                    stacks=stacks,
                    rounds=min(rounds, 3),
                )
                figures |= superpixel_figures(step, whole)
            if {"raw", "shaped"} & set(parts):
                _say("raw reading ...")
                sums, sizes = _write_random(
                    f"{server.url}/raw", *((2, 32 << 20) if quick else (4, 105_000_000))
                )
                raw: dict[str, Any] = {"url": f"{server.url}/raw", "sizes": sizes, "rounds": rounds}
                if "raw" in parts:
                    figures |= raw_figures(run_case("raw_reading", bucket=server.bucket, sums=sums, **raw))
                if "shaped" in parts:
                    figures |= shaped_figures(run_case("shaped_reading", paths=list(sums), **raw))
            if "memory" in parts:
                _say("memory ...")
                shards, per_shard = (4, 32) if quick else (8, 64)
                write_photo_set(folder / "small", shards, per_shard, distinct=DISTINCT[quick])
                upload(folder / "small", f"{server.url}/small")
                figures |= memory_figures(
                    run_case("memory", url=f"{server.url}/small", workers=WORKERS, epochs=list(EPOCHS))
                )
    return {name: _without_target(figure) for name, figure in figures.items()} if quick else figures


def end_to_end_figures(place: str, found: Mapping[str, Any]) -> dict[str, Figure]:
    """Figures of ``data_cases.end_to_end`` on stored maps."""
    rates = {
        stack: found["samples"] / statistics.median(seconds) for stack, seconds in found["seconds"].items()
    }
    ratio, cpu = (_ratio(found[kind]["plain"], found[kind]["ours"]) for kind in ("seconds", "cpu_seconds"))
    with_maps = _ratio(found["seconds"]["plain with maps"], found["seconds"]["ours"])
    rounds = len(found["seconds"]["ours"])
    name = f"end to end, {place}"
    return {
        f"{name}: ours": Figure(rates["ours"], "samples/s/core", beside="pictures, tokens, patch labels"),
        f"{name}: plain stack": Figure(rates["plain"], "samples/s/core", beside="pictures, tokens"),
        f"{name}: ratio": Figure.at_least(
            ratio,
            "",
            END_TO_END,
            f"{rounds} rounds of {found['samples']} samples in turn; {cpu:.2f} by CPU time",
        ),
        f"{name}: ratio, maps by both": Figure(
            with_maps, "", beside=f"plain stack with maps: {rates['plain with maps']:.0f} samples/s/core"
        ),
    }


def superpixel_figures(step: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Figure]:
    """Figures of ``data_cases.superpixel_step``, and of ``end_to_end`` where maps are computed."""
    figures: dict[str, Figure] = {}
    missing = "" if step["fast_slic"] else "; fast-slic is not installed: this is scikit-image's SLIC"
    for side, target in (("341x256", SUPERPIXELS), ("224x224", None)):
        seconds = step[side]
        ratio = _ratio(seconds["felzenszwalb"], seconds["slic"])
        slow, fast = (1e3 * statistics.median(seconds[name]) for name in ("felzenszwalb", "slic"))
        figures[f"superpixels, {side}: SLIC / Felzenszwalb"] = Figure.at_least(
            ratio, "", target, f"{fast:.2f} ms and {slow:.1f} ms a picture{missing}"
        )
    ours, plain = (
        whole["samples"] / statistics.median(whole["seconds"][name]) for name in ("ours", "plain with maps")
    )
    figures["superpixels online, end to end: ratio"] = Figure(
        _ratio(whole["seconds"]["plain with maps"], whole["seconds"]["ours"]),
        "",
        beside=f"ours {ours:.0f}, plain stack with Felzenszwalb {plain:.1f} samples/s/core, files",
    )
    return figures


def raw_figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Figures of ``data_cases.raw_reading``. Without one of the clients the ratio is no verdict."""
    seconds, missing = found["seconds"], found["missing"]
    figures = {
        f"raw reading: {client}": Figure(
            found["bytes"] / statistics.median(each) / 1e6,
            "MB/s",
            beside="to files in memory, all objects at once" if client == "s5cmd" else "",
        )
        for client, each in seconds.items()
    }
    fastest = min(
        (client for client in seconds if client != OURS), key=lambda name: statistics.median(seconds[name])
    )
    ratio = _ratio(seconds[fastest], seconds[OURS])
    figures["raw reading: ours / fastest other"] = Figure(
        ratio,
        "",
        RAW,
        None if missing else ratio >= RAW,
        "; ".join(
            [f"{fastest}, {len(seconds[OURS])} rounds of {found['bytes'] / 1e6:.0f} MB in turn", *missing]
        ),
    )
    return figures


def shaped_figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Figures of ``data_cases.shaped_reading``."""
    rates = found["bytes_per_second"]
    ours, stream, unshaped = (statistics.median(rates[name]) / 1e6 for name in ("ours", "stream", "unshaped"))
    ratio = _ratio(rates["ours"], rates["stream"])
    return {
        "shaped to 90 MB/s, 30 ms: ours": Figure(ours, "MB/s"),
        "shaped to 90 MB/s, 30 ms: one stream": Figure(stream, "MB/s", beside="obstore"),
        "shaped to 90 MB/s, 30 ms: ratio": Figure.at_least(
            ratio, "", SHAPED, f"unshaped, the proxy lets {unshaped:.0f} MB/s of ours through"
        ),
    }


def memory_figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Figures of ``data_cases.memory``."""
    early, late = found["mib"]
    figures = {
        f"memory, epoch {epoch}": Figure(
            mib, "MiB", beside=f"main process {main:.1f}, larger of {WORKERS} workers {worker:.1f} MiB"
        )
        for epoch, mib, main, worker in zip(
            EPOCHS, found["mib"], found["main_mib"], found["worker_mib"], strict=True
        )
    }
    figures[f"memory, epoch {EPOCHS[1]} / epoch {EPOCHS[0]}"] = Figure.at_most(
        late / early,
        "",
        MEMORY,
        f"at most; {late - early:+.1f} MiB while {found['store_mib']:.0f} MiB were read from the store",
    )
    return figures


def _ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """Median over the rounds of one's number over the other's."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def _write_random(url: str, count: int, size: int) -> tuple[dict[str, str], list[int]]:
    """Objects of random bytes: SHA-256 by path, and their sizes."""
    store = open_store(url)
    sums = {}
    for number in range(count):
        content = random.Random(number).randbytes(size)
        path = f"{number:05d}.tar"
        store.put(path, content)
        sums[path] = hashlib.sha256(content).hexdigest()
    return sums, [size] * count


def _without_target(figure: Figure) -> Figure:
    return Figure(figure.value, figure.unit, beside=figure.beside)


def _say(what: str) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    main()
