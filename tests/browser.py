"""A real browser without a window: Chromium, driven by Playwright.

Where none is found, tests that need one are skipped, but fail if
``SEGCLIP_NEED_BROWSER`` is set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Page, Route, sync_playwright

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
MISSING = (
    f"no browser found (looked for {', '.join(PROGRAMS)}): on Debian, apt-get install chromium-headless-shell; "
    "elsewhere any Chromium in PATH does, or name one in SEGCLIP_BROWSER"
)


def program() -> str | None:
    """Path of a browser on this machine."""
    return os.environ.get("SEGCLIP_BROWSER") or next(filter(None, map(shutil.which, PROGRAMS)), None)


@dataclass
class Noted:
    """What a page did that it should not: errors, and requests to other machines."""

    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


@contextmanager
def open_page(*, dark: bool = False, width: int = 1280, height: int = 900) -> Iterator[tuple[Page, Noted]]:
    """An empty page, and what is noted of it from then on. Requests to other machines are noted and refused."""
    found = program()
    if found is None:
        (pytest.fail if os.environ.get("SEGCLIP_NEED_BROWSER") else pytest.skip)(MISSING)
    with sync_playwright() as playwright:
        # Of the tests' own pages alone: as root, the sandbox does not start.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        page.set_default_timeout(30_000)
        noted = Noted()
        page.on("console", lambda said: noted.errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: noted.errors.append(str(error)))

        def decide(route: Route) -> None:
            own = route.request.url.startswith(("file:", "http://127.0.0.1:", "http://localhost:"))
            if own:
                route.continue_()
            else:
                noted.outside.append(route.request.url)
                route.abort()

        page.route("**/*", decide)
        yield page, noted
        browser.close()
