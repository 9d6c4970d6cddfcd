"""The page of all settings of a run, from the classes that check them: ``python -m docs.make.configuration``."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from segclip.trainer.config import RunConfig

__all__ = ["page", "sections", "tables"]

HEAD = """# Settings of a run

Every key that a configuration file may hold, from the classes that check it. On the command line a key is replaced by
its dotted name, as in `train.steps=100`; values are YAML. Unknown keys, wrong types and values out of range are refused
before anything starts, with the nearest name that exists. The resolved settings are saved as `config.yaml` in the run's
folder and are parameters of its MLflow run.
"""
PLACES = {tuple: "[]", list: "[]", dict: ".NAME"}
KINDS = {"": "section", "[]": "list of sections", ".NAME": "a section for each name"}
BOUNDS = {Gt: ">", Ge: "≥", Lt: "<", Le: "≤"}


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Dotted name and class of each section, the outermost (with no name) first."""
    yield prefix, model
    for name, field in model.model_fields.items():
        inner, place = _section_of(field.annotation)
        if inner is not None:
            yield from sections(inner, f"{prefix}.{name}".lstrip(".") + place)


def page() -> str:
    """Markdown."""
    return HEAD + "\n" + tables(RunConfig)


def tables(outermost: type[BaseModel]) -> str:
    """A heading and a table for each section of a configuration."""
    parts = []
    for name, model in sections(outermost):
        if name:
            parts.append(f"## {name} {{ #{_anchor(name)} }}\n")
        parts.append(" ".join((model.__doc__ or "").replace("``", "`").split()) + "\n")
        parts.append("| Key | Type | Default | |\n|---|---|---|---|")
        for key, field in model.model_fields.items():
            inner, place = _section_of(field.annotation)
            dotted = f"{name}.{key}".lstrip(".")
            said = _cell(field.description or "")
            if inner is None:
                cells = (f"`{key}`", _type(field), _default(field), said)
            else:
                default = "required" if field.is_required() else "as there"
                link = f"[{dotted}](#{_anchor(dotted)})"
                cells = (f"`{key}`", KINDS[place], default, f"{said or _opening(inner)} {link}")
            parts.append("| " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def _opening(model: type[BaseModel]) -> str:
    """First sentence of what a class says of itself."""
    return _cell((model.__doc__ or "").replace("``", "`").split(".\n")[0].split(". ")[0].rstrip(".") + ".")


def _anchor(name: str) -> str:
    return name.replace("[]", "").replace(".NAME", "")


def _section_of(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The config class of a field that holds one, or several of them at these places."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    for part in typing.get_args(annotation):
        inner, _ = _section_of(part)
        if inner is not None:
            return inner, PLACES.get(typing.get_origin(annotation), "")
    return None, ""


def _type(field: FieldInfo) -> str:
    text = _name(field.annotation)
    bounds = [
        f"{sign} {_bound(getattr(each, kind.__name__.lower()))}"
        for each in field.metadata
        for kind, sign in BOUNDS.items()
        if isinstance(each, kind)
    ]
    if any(isinstance(each, MinLen) for each in field.metadata):
        bounds.append("not empty")
    return text + (", " + ", ".join(bounds) if bounds else "")


def _bound(value: float) -> str:
    """As people write it: 2^63 rather than nineteen digits."""
    power = int(value).bit_length() - 1
    return f"2^{power}" if power > 31 and value == 2**power else str(value)


def _name(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "`null`"
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_name(part) for part in parts)
    if origin is typing.Annotated:
        return _name(parts[0])
    if origin in (tuple, list):
        own = [_name(part) for part in parts if part is not Ellipsis]
        return f"list of {own[0]}" if Ellipsis in parts or origin is list else f"[{', '.join(own)}]"
    if origin is dict:
        return f"map of {_name(parts[0])} to {_name(parts[1])}"
    return {int: "integer", float: "number", str: "text", bool: "`true`, `false`"}.get(annotation) or str(
        annotation
    )


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else f"`{_yaml(field.get_default(call_default_factory=True))}`"


def _yaml(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_yaml(each) for each in value)}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


if __name__ == "__main__":
    print(page())
