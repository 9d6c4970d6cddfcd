"""``segclip-demo`` as its user meets it: a real server, a real browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest
from PIL import Image

from segclip.eval import demo
from segclip.rendezvous import free_port
from tests.browser import open_page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(checkpoint) -> Iterator[str]:
    """Of the page, served by the command line."""
    command = [sys.executable, "-m", "segclip.eval.demo", "--checkpoint", checkpoint, "--port", free_port()]
    with subprocess.Popen(
        [str(each) for each in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        told = re.fullmatch(
            r"segclip-demo of .+: open (http://127\.0\.0\.1:\d+/) \(stop with Ctrl-C\)\n", line
        )
        try:
            assert told, line + server.stdout.read()
            yield told[1]
        finally:
            server.terminate()


def test_a_picture_is_divided_and_the_threshold_moved(address, pictures, tmp_path) -> None:
    Image.fromarray(pictures(60, 90)).save(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with open_page() as (page, noted):
        page.goto(address)
        status = page.locator("#status textarea, #status input")
        segment = page.get_by_role("button", name="Segment")

        def told(pattern: str) -> str:
            """The line below the result, once it is as expected."""
            page.wait_for_function(
                "wanted => new RegExp(wanted).test(document.querySelector('#status textarea, #status input').value)",
                arg=pattern,
            )
            return status.input_value()

        segment.click()
        told("^error: no picture yet")
        upload = page.locator("input[type=file]").first
        with page.expect_response(re.compile("/upload")):
            upload.set_input_files(tmp_path / "broken.png")
        page.locator("#words textarea").fill("red circle")
        segment.click()
        assert told("does not decode") == ("error: the picture does not decode as an image (unknown format)")
        page.get_by_label("Clear").or_(page.get_by_label("Remove Image")).first.click()
        with page.expect_response(re.compile("/upload")):
            page.locator("input[type=file]").first.set_input_files(tmp_path / "photo.png")
        page.locator("#words textarea").fill("red circle\ncat, kitten\nCAT")
        segment.click()
        assert told("twice") == "error: class 'CAT' stands twice; each needs words of its own"
        page.locator("#words textarea").fill("red circle\ncat, kitten\nsand\nblue <b>thing</b>")
        segment.click()
        assert told("^90 x 60 pixels").startswith("90 x 60 pixels")
        legend = page.locator("#result .legend-item")
        legend.first.wait_for()
        words = [re.sub(r" [\d.]+ %$", "", each.strip()) for each in legend.all_inner_texts()]
        assert set(words) <= {"red circle", "cat", "sand", "blue <b>thing</b>"}
        shares = [float(re.search(r"([\d.]+) %", each)[1]) for each in legend.all_inner_texts()]
        assert sum(shares) == pytest.approx(100, abs=0.3)
        # Red without a shade is what Gradio takes where it is told no colour.
        assert "255, 0, 0" not in "".join(each.get_attribute("style") for each in legend.all())
        masks = page.locator("#result img.mask")
        assert masks.count() == len(words)
        # All that is drawn has arrived.
        page.wait_for_function(
            "[...document.querySelectorAll('#result img')].every(each => each.naturalWidth == 640)"
        )
        legend.first.hover()
        page.wait_for_function("document.querySelectorAll('#result img.mask.active').length == 1")
        page.get_by_label("threshold", exact=True).first.check()
        told("background")
        slider = page.locator("#threshold input[type=range]")
        slider.wait_for()
        slider.focus()
        slider.press("End")
        told(r"background (?!0\.0)")
        page.screenshot(path=tmp_path / "page.png")
    assert not noted.errors
    assert not noted.outside


def test_files_that_were_not_uploaded_are_not_read(address, tmp_path) -> None:
    """Whoever speaks to the server without the page names no other files of this machine."""
    Image.new("RGB", (20, 20)).save(tmp_path / "private.png")
    picture = {"path": str(tmp_path / "private.png"), "meta": {"_type": "gradio.FileData"}}
    data = json.dumps({"data": [picture, "cat\ndog", "every pixel gets a word", 0.5, ""]}).encode()
    call = f"{address}gradio_api/call/segment"
    request = urllib.request.Request(call, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        event = json.load(reply)["event_id"]
    with urllib.request.urlopen(f"{call}/{event}", timeout=30) as reply:
        told = reply.read().decode()
    assert "20 x 20 pixels" not in told
    assert "error" in told


def test_bad_input_is_one_line_before_anything_starts(address, capsys, checkpoint) -> None:
    taken = address.rstrip("/").rsplit(":", 1)[1]
    for arguments, message in (
        (["--checkpoint", "nowhere"], "error: no checkpoint at nowhere"),
        (
            ["--checkpoint", str(checkpoint), "--port", "0"],
            "error: --port must lie between 1 and 65535, got 0",
        ),
        (["--checkpoint", str(checkpoint), "--protocol", "foto"], "error: unknown protocol 'foto'"),
        (
            ["--checkpoint", str(checkpoint), "--port", taken],
            f"error: cannot listen on 127.0.0.1, port {taken} (Address already in use",
        ),
    ):
        with pytest.raises(SystemExit) as exit:
            demo.main(arguments)
        assert exit.value.code == 2
        assert capsys.readouterr().err.startswith(message)
