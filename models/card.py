"""The model card (``README.md``) that lies beside exported weights: what they are, how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from segclip.models.config import ModelConfig

__all__ = ["model_card"]

NOT_RECORDED = "Not recorded."


def model_card(config: ModelConfig, fields: Mapping[str, Any]) -> str:
    """Markdown with the metadata block of the Hugging Face hub.

    Args:
        fields: what is known of the weights; each is optional. ``run``: name of the run; ``recipe``: its
            configuration; ``data``: where the samples came from, with ``manifest_sha256``; ``scores``: list
            of tables with ``dataset``, ``protocol`` and ``miou`` (0 to 1). Other fields are listed as they
            are.
    """
    scores: Sequence[Mapping[str, Any]] = fields.get("scores") or []
    name = str(fields.get("run") or "segclip")
    metadata: dict[str, Any] = {
        "library_name": "segclip",
        "pipeline_tag": "image-segmentation",
        "tags": [
            "segclip",
            "open-vocabulary-segmentation",
            "zero-shot",
            "pytorch_model_hub_mixin",
            "model_hub_mixin",
        ],
    }
    if scores:
        metadata["model-index"] = [{"name": name, "results": [_result(score) for score in scores]}]
    others = {key: value for key, value in fields.items() if key not in ("run", "recipe", "data", "scores")}
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {name}",
        "A SegCLIP network ([paper](https://arxiv.org/abs/2211.14813)): it gathers the patches of an image into "
        f"at most {config.centers} regions and names each by any list of words. It was trained on pairs of images "
        "and captions, without masks.",
        "## Use\n\n```python\nimport segclip\nfrom PIL import Image\n\n"
        'model = segclip.load("PATH/TO/THIS/FOLDER")  # or segclip.SegCLIP.from_pretrained("OWNER/NAME")\n'
        'result = segclip.segment(model, Image.open("photo.jpg"), ["cat", "sofa"])\n```',
        "## Network\n\n"
        + _table(
            ("", ""),
            [
                (
                    "image",
                    f"{config.image_size} x {config.image_size} pixels, patches of {config.patch_size}",
                ),
                (
                    "vision tower",
                    f"width {config.vision_width}, {config.vision_layers} blocks, aggregation into "
                    f"{config.centers} centers after {config.first_stage_layers}",
                ),
                (
                    "text tower",
                    f"width {config.text_width}, {config.text_layers} blocks, {config.context_length} words",
                ),
                ("shared space", str(config.embed_dim)),
                ("started from", config.for_others().init_from or "random values"),
            ],
        ),
        f"## Scores\n\n{_scores(scores)}",
        f"## Data\n\n{_yaml(fields.get('data'))}",
        f"## Recipe\n\n{_yaml(fields.get('recipe'))}",
        "## Limits\n\nRegions follow the words of the captions it was trained on: words that these rarely hold are "
        "found badly, and biases of the captions remain. Small objects share a region with their surroundings.",
    ]
    if others:
        parts.append(f"## Further fields\n\n{_yaml(others)}")
    return "\n\n".join(parts) + "\n"


def _scores(scores: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (str(s["dataset"]), str(s.get("protocol", "")), f"{100 * float(s['miou']):.2f} %") for s in scores
    ]
    return _table(("data set", "protocol", "mIoU"), rows) if rows else NOT_RECORDED


def _result(score: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": {"type": "image-segmentation"},
        "dataset": {"name": str(score["dataset"]), "type": str(score["dataset"])},
        "metrics": [{"type": "mean_iou", "value": float(score["miou"])}],
    }


def _yaml(content: Any) -> str:
    if not content:
        return NOT_RECORDED
    return f"```yaml\n{yaml.safe_dump(content, sort_keys=False).rstrip()}\n```"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["-"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
