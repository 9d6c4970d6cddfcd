"""What an evaluation leaves in its folder: the result, pictures, the report."""

from __future__ import annotations

from pathlib import Path

from segclip.eval.datasets.dataset import SegmentationDataset
from segclip.eval.protocol import Protocol
from segclip.eval.reports.html_report import write_report
from segclip.eval.reports.pictures import choose, write_pictures
from segclip.eval.reports.views import make_views
from segclip.eval.result import Result
from segclip.eval.thresholds import threshold_picture
from segclip.models.segclip import SegCLIP

__all__ = ["write_outputs"]

PICTURES = ("confusion", "overlays", "thresholds", "worst")


def write_outputs(
    folder: str | Path,
    model: SegCLIP,
    dataset: SegmentationDataset,
    protocol: Protocol,
    result: Result,
    *,
    count: int = 8,
) -> dict[str, Path]:
    """Write ``result.json``, ``report.html`` and the pictures; the result first, lest a picture lose it.

    Args:
        folder: made if it is not there; files of these names are replaced, and those that this result does not have
            are removed.
        model, dataset, protocol, result: as given to and returned by ``evaluate``.
        count: images of each kind (evenly spaced, worst, best); 0 for none.

    Returns:
        The files by their name without ending.
    """
    folder = Path(folder)
    written = {"result": result.write(folder / "result.json")}
    for counts in folder.glob("result-counts-*.npz"):
        written["counts"] = counts
    chosen = choose(dataset, result, count)
    if result.thresholds is not None:
        written["thresholds"] = threshold_picture(result, folder / "thresholds.png")
    views = make_views(model, dataset, protocol, chosen.all())
    written |= write_pictures(folder, dataset, result, chosen, views)
    for name in PICTURES:
        if name not in written:
            (folder / f"{name}.png").unlink(missing_ok=True)
    written["report"] = write_report(folder / "report.html", dataset, result, chosen, views)
    return written
