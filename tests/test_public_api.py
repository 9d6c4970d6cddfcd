"""What is public is listed alike where it is offered and where it is documented."""

from __future__ import annotations

import re
from pathlib import Path

import segclip

API_PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def test_the_page_documents_what_the_package_offers() -> None:
    documented = re.findall(r"^::: (\S+)$", API_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    offered = [f"{home}.{name}" for name, home in segclip._HOMES.items()]
    assert sorted(documented) == sorted(offered)
    assert sorted(segclip.__all__) == sorted(segclip._HOMES)
