"""Evaluation of ViT-B/16 on the CPU: images a second beside the plain way, and memory with many classes.

    python -m benchmarks.eval
    python -m benchmarks.eval --quick --json eval.json

Speed: photos of 640 x 480 pixels (COCO's usual size) with 80 words under the protocol `segclip`, by the engine and by
`benchmarks.plain_eval`, in turns; both start from decoded pictures and embedded words. A larger size is shown beside.
Where the time goes is shown too, and the share of pixels whose labels differ.

Memory: one picture of 4,000 x 3,000 pixels with 171 classes, under every protocol that comes with the package, each in
a process of its own; the peak above what was resident with the network loaded. `photo` goes through
`segclip.segment`, as one's own pictures do.

The network's weights are random, but large enough that patches differ, and words are what sets its centers of other
photos apart, so that labels vary within a picture.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.own_process import peak_resident_mib, resident_mib_from_here, run_alone
from benchmarks.report import Figure, arguments, print_figures, write_report

if TYPE_CHECKING:
    from segclip.eval.inference import ClassScorer
    from segclip.eval.protocol import Protocol
    from segclip.models.segclip import SegCLIP

SPEEDUP, GIGABYTES = 4.0, 2.0
BATCH = 16
SIZES = ((480, 640), (1200, 1600))
LARGE, CLASSES = (3000, 4000), 171
# The data set of each protocol that makes it work hardest.
HARDEST = {
    "segclip": "ade20k150",
    "groupvit": "ade20k150",
    "tcl": "ade20k150",
    "sclip": "cityscapes19",
    "scenes": "scenes",
    "photo": "",
}


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, help="640 x 480 photos a turn (default: 8; quick: 1)")
    parser.add_argument("--turns", type=int, help="of both ways (default: 5; quick: 1)")
    parser.add_argument("--only", choices=["speed", "memory"], help="measure this alone")
    parser.add_argument("--case", metavar="PROTOCOL", help="print the memory figure of one protocol as JSON")
    given = parser.parse_args()
    images = given.images if given.images is not None else (1 if given.quick else 8)
    turns = given.turns if given.turns is not None else (1 if given.quick else 5)
    if min(images, turns) < 1:
        parser.error(f"--images and --turns must be at least 1, got {images} and {turns}")
    if given.case:
        print(json.dumps(memory(given.case)))
        return
    figures: dict[str, Figure] = {}
    if given.only != "memory":
        figures |= speed(images, turns, SIZES[:1] if given.quick else SIZES)
    if given.only != "speed":
        for protocol in ["photo"] if given.quick else HARDEST:
            print(f"memory under {protocol} ...", flush=True)
            figures |= memory_figure(protocol, run_alone("eval", "--case", protocol))
    print_figures("Evaluation of ViT-B/16 on the CPU", figures)
    write_report(given.json, figures)


def speed(images: int, turns: int, sizes: Sequence[tuple[int, int]]) -> dict[str, Figure]:
    """Both ways in turns, at each size."""
    import torch

    from benchmarks.plain_eval import plain_labels
    from segclip.eval.inference import predict
    from segclip.eval.protocol import load_protocol
    from segclip.eval.windows import resize
    from segclip.heap import keep_freed_memory

    torch.set_num_threads(cores())
    keep_freed_memory()  # as segclip-eval does
    model = network()
    protocol = load_protocol("segclip")
    geometry = protocol.geometry(model.config, "coco_object")
    threshold = protocol.rule("coco_object").threshold
    scorer = random_words(model, protocol, "coco_object", 80, threshold)
    figures: dict[str, Figure] = {}
    for number, (height, width) in enumerate(sizes):
        count = images if number == 0 else max(images // 4, 1)
        pictures = photos(count, height, width)

        def engine(pictures: Sequence[NDArray[np.uint8]] = pictures) -> list[Any]:
            pairs = ((resize(each, geometry), (each.shape[0], each.shape[1])) for each in pictures)
            return [found.labels() for found in predict(model, pairs, scorer, geometry, batch_size=BATCH)]

        def plain(pictures: Sequence[NDArray[np.uint8]] = pictures) -> list[Any]:
            return [plain_labels(model, each, scorer, geometry) for each in pictures]

        print(f"{width} x {height} ...", flush=True)
        labels, same = engine(), plain()
        wrong = sum(int((a != b).sum()) for a, b in zip(labels, same, strict=True))
        pairs = [(timed(plain), timed(engine)) for _ in range(turns)]
        slow, fast = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        name = f"{width} x {height}"
        figures[f"{name}, speed / plain way"] = Figure.at_least(
            ratio,
            "",
            SPEEDUP if number == 0 else None,
            f"median of {turns} turns, {count} images each; 80 words, protocol segclip",
        )
        figures[f"{name}, engine"] = Figure(count / fast, "images/s", beside=f"windows in batches of {BATCH}")
        figures[f"{name}, plain way"] = Figure(count / slow, "images/s", beside="two passes at batch size 1")
        figures[f"{name}, labels that differ"] = Figure(
            1e6 * wrong / (count * height * width), "per million pixels",
            beside=f"of {len(torch.cat([each.unique() for each in labels]).unique())} labels found; "
            "scores that tie to rounding",
        )  # fmt: skip
        if number == 0:
            figures |= parts(model, scorer, pictures, turns)
    return figures


def parts(
    model: SegCLIP, scorer: ClassScorer, pictures: Sequence[NDArray[np.uint8]], turns: int
) -> dict[str, Figure]:
    """Where the time of both ways goes."""
    import torch

    from benchmarks.plain_eval import plain_scores
    from segclip.eval.inference import predict
    from segclip.eval.protocol import load_protocol
    from segclip.eval.windows import resize

    geometry = load_protocol("segclip").geometry(model.config, "coco_object")
    one_13HW = torch.from_numpy(pictures[0][:224, :224].copy()).permute(2, 0, 1)[None]
    several_B3HW = one_13HW.expand(BATCH, -1, -1, -1).contiguous()
    with torch.inference_mode():
        alone = statistics.median(timed(lambda: model.encode_image(one_13HW)) for _ in range(2 * turns + 1))
        batched = statistics.median(timed(lambda: model.encode_image(several_B3HW)) for _ in range(turns))
    size = (pictures[0].shape[0], pictures[0].shape[1])
    rest = statistics.median(
        timed(found.labels)
        for _ in range(turns)
        for found in predict(model, [(resize(pictures[0], geometry), size)], scorer, geometry)
    )
    whole = statistics.median(
        timed(lambda: plain_scores(model, pictures[0], scorer, geometry).softmax(dim=0).argmax(dim=0))
        for _ in range(turns)
    )
    windows = -(-int(224 * max(size) / min(size)) // 224)
    return {
        "encoder, one window": Figure(1e3 * alone, "ms/window", beside="the plain way needs it twice"),
        "encoder, batched": Figure(1e3 * batched / BATCH, "ms/window", beside=f"{BATCH} windows in a call"),
        "cells and labels": Figure(1e3 * rest, "ms/image", beside="of the engine, 640 x 480"),
        "plain way without the encoder": Figure(
            1e3 * (whole - 2 * windows * alone), "ms/image",
            beside=f"what is left of an image after {2 * windows} passes",
        ),
    }  # fmt: skip


def memory(name: str) -> dict[str, float]:
    """Resident memory before and during one large picture under one protocol."""
    import torch

    from segclip.eval.inference import predict
    from segclip.eval.protocol import load_protocol
    from segclip.eval.segment import Segmenter
    from segclip.eval.windows import resize
    from segclip.heap import keep_freed_memory

    torch.set_num_threads(cores())
    if name != "photo":
        keep_freed_memory()
    model = network(patch_size=6 if name == "scenes" else 16)
    (picture,) = photos(1, *LARGE)
    protocol = load_protocol(name)
    if name == "photo":
        before = resident_mib_from_here()
        words = [f"{number} things" for number in range(CLASSES)]
        found = Segmenter(model, words)(picture).labels_HW
        return {"before_mib": before, "peak_mib": peak_resident_mib(), "labels": len(np.unique(found))}
    dataset = HARDEST[name]
    scorer = random_words(model, protocol, dataset, CLASSES, None)
    geometry = protocol.geometry(model.config, dataset)
    before = resident_mib_from_here()
    (prediction,) = predict(model, [(resize(picture, geometry), LARGE)], scorer, geometry)
    labels = prediction.labels()
    return {"before_mib": before, "peak_mib": peak_resident_mib(), "labels": len(labels.unique())}


def memory_figure(name: str, found: dict[str, float]) -> dict[str, Figure]:
    """The figure of what ``memory`` found."""
    above = (found["peak_mib"] - found["before_mib"]) * 2**20 / 1e9
    way = "segclip.segment" if name == "photo" else f"sizes of {HARDEST[name]}"
    beside = f"{way}; {found['labels']:.0f} labels found; {found['before_mib'] * 2**20 / 1e9:.2f} GB with the network"
    return {
        f"4,000 x 3,000, {CLASSES} classes, {name}: memory above the network": Figure.at_most(
            above, "GB", GIGABYTES, beside
        )
    }


def network(patch_size: int = 16) -> SegCLIP:
    """ViT-B/16 (or one for the quickstart's windows of 48 pixels), with random weights."""
    import torch

    from segclip.models.sizes import segclip_vit_b16

    torch.manual_seed(0)
    model = segclip_vit_b16(**({} if patch_size == 16 else {"image_size": 48, "patch_size": patch_size}))
    with torch.no_grad():
        for parameter in model.vision.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    return model.eval()


def random_words(
    model: SegCLIP, protocol: Protocol, dataset: str, count: int, threshold: float | None
) -> ClassScorer:
    """What sets centers of other photos apart, in the place of words."""
    import torch

    from segclip.eval.inference import ClassScorer

    side = model.config.image_size
    others = torch.stack(
        [
            torch.from_numpy(each.copy()).permute(2, 0, 1)
            for each in photos(-(-count // model.config.centers), side, side, 1)
        ]
    )
    with torch.inference_mode():
        centers_NE = torch.cat([model.encode_image(each).center_embed_BGE[0] for each in others.split(1)])[
            :count
        ]
    # What all centers share would make one word the best for all.
    text_NE = torch.nn.functional.normalize(centers_NE - centers_NE.mean(dim=0), dim=-1)
    return ClassScorer(
        text_NE,
        protocol.scale(dataset) or 100.0,
        protocol.score,
        protocol.top_k,
        threshold=threshold,
        softmax_at=protocol.softmax_at,
        threshold_at=protocol.threshold_at,
    )


def photos(count: int, height: int, width: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """uint8 [height, width, 3] each."""
    from PIL import Image

    from benchmarks import photo_sets

    return [
        np.asarray(Image.fromarray(each).resize((width, height), Image.Resampling.BICUBIC))
        for each in photo_sets.photos(count, seed)
    ]


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0))


def timed(work: Callable[[], object]) -> float:
    """Seconds it takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
