"""Settings of evaluation that lie in YAML files: protocols, data sets of one's own, lists of words."""

from __future__ import annotations

from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from segclip.console import nearest

__all__ = ["read_mapping", "validated"]

Model = TypeVar("Model", bound=BaseModel)


def read_mapping(content: bytes, where: str) -> dict[str, Any]:
    """The fields that a file holds.

    Args:
        content: of the file.
        where: what an error calls it.

    Raises:
        ValueError: it is no YAML, or no mapping.
    """
    try:
        tree = yaml.safe_load(content.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{where} must be a mapping of fields, got {type(tree).__name__}")
    return tree


def validated(
    model: type[Model], tree: dict[str, Any], where: str, nested: type[BaseModel] | None = None
) -> Model:
    """The fields, checked.

    Args:
        model: what they are to make.
        tree: the fields.
        where: what an error calls the file.
        nested: whose fields those below the uppermost are.

    Raises:
        ValueError: a field is unknown (the nearest is offered) or wrong; one line that names the first.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = nested if nested is not None and len(first["loc"]) > 1 else model
            raise ValueError(
                f"{where}: unknown field {field!r}{nearest(str(first['loc'][-1]), known.model_fields)}"
            ) from None
        shown = first["type"] != "missing" and not isinstance(first["input"], dict)
        got = f", got {first['input']!r}" if shown else ""
        if first["type"] == "string_type" and isinstance(first["input"], (bool, int, float)):
            got += "; YAML takes no, on and numbers for something else: put words like these in quotes"
        raise ValueError(f"{where}: {f'field {field!r}: ' if field else ''}{first['msg']}{got}") from None
