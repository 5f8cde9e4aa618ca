"""The page in a real browser: it shows, asks for nothing, runs nothing, fits a phone, and is light or dark as asked."""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from host.compress.report.page import write_html_report
from tests.example_report import example_report

pytestmark = pytest.mark.slow

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)
_EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{}"

# Written by the test, not by us: measures how wide the page is in a phone's window.
_PHONE = """<!doctype html><title>waiting</title><iframe src="report.html" width="360" height="700"
onload="document.title = 'wide ' + contentDocument.documentElement.scrollWidth"></iframe>"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Served:
    """A folder with the page, served on this machine, and what was asked for."""

    folder: Path
    address: str
    asked: list[str]


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found is not None, "chromium is not installed: apt-get install chromium"
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Served]:
    folder = tmp_path_factory.mktemp("page")
    report = example_report(layers=12, node=_EVIL)
    write_html_report(report, folder / "report.html", recipe=_EVIL)
    (folder / "phone.html").write_text(_PHONE, encoding="utf-8")
    asked: list[str] = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield _Served(folder=folder, address=f"http://127.0.0.1:{server.server_port}", asked=asked)
        server.shutdown()
        thread.join()


def _run(chromium: str, profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        [chromium, *_FLAGS, f"--user-data-dir={profile}", *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran


def test_the_browser_shows_the_page_and_runs_nothing_of_it(chromium: str, served: _Served, tmp_path: Path) -> None:
    served.asked.clear()
    ran = _run(chromium, tmp_path / "profile", "--dump-dom", f"{served.address}/report.html")
    assert "<title>efficientnet-lite0: compression report</title>" in ran.stdout
    assert "owned</title>" not in ran.stdout
    assert "<script" not in ran.stdout
    assert "<img" not in ran.stdout
    assert "&lt;script&gt;document.title='owned'&lt;/script&gt;" in ran.stdout
    assert ran.stdout.count('<svg class="plot"') == 10
    # A refused style or request is a message on the console.
    assert not re.search(r"CONSOLE.*(Refused|Content Security Policy|violat)", ran.stderr), ran.stderr
    assert served.asked == ["/report.html"]


def test_the_page_fits_a_phone(chromium: str, served: _Served, tmp_path: Path) -> None:
    ran = _run(chromium, tmp_path / "profile", "--dump-dom", f"{served.address}/phone.html")
    found = re.search(r"<title>wide (\d+)</title>", ran.stdout)
    assert found is not None, ran.stdout[:500]
    assert int(found[1]) <= 360


def _colours(chromium: str, page: Path, folder: Path, scheme: int) -> dict[tuple[int, int, int], int]:
    """How often each colour occurs in a picture of the page."""
    shot = folder / f"{scheme}.png"
    _run(
        chromium,
        folder / f"profile-{scheme}",
        f"--blink-settings=preferredColorScheme={scheme}",
        "--window-size=1000,3000",
        f"--screenshot={shot}",
        page.as_uri(),
    )
    with Image.open(shot) as picture:
        counted = picture.convert("RGB").getcolors(maxcolors=1 << 24) or []
    return {colour: count for count, colour in counted if isinstance(colour, tuple) and len(colour) == 3}


def test_the_page_is_light_or_dark_as_the_reader_wants(chromium: str, served: _Served, tmp_path: Path) -> None:
    page = served.folder / "report.html"
    light, dark = _colours(chromium, page, tmp_path, 1), _colours(chromium, page, tmp_path, 0)
    # The page itself, the cards on it, and the bars of the pictures, which take their colour from the style sheet.
    for colour in ((0xF6, 0xF7, 0xF9), (0xFF, 0xFF, 0xFF), (0x16, 0x66, 0xC5), (0x12, 0x80, 0x5C)):
        assert light.get(colour, 0) > 50, colour
    for colour in ((0x0F, 0x13, 0x19), (0x18, 0x1D, 0x25), (0x63, 0xAA, 0xF7), (0x4C, 0xC7, 0x96)):
        assert dark.get(colour, 0) > 50, colour
    assert (0xFF, 0xFF, 0xFF) not in dark
