"""The page at / in a browser: an image is dropped, and the page says what the server says."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.browser import AXE, browser, needs_browser
from tests.serve.served import asking, said
from tests.serve.test_app import encoded, pictures, png
from tests.serve.test_process import ready, server

pytestmark = [pytest.mark.slow, needs_browser]


def test_a_browser_shows_answer_and_path_of_an_image(run: Path, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(png(pictures(1)[0]))
    (tmp_path / "text.png").write_text("no image")
    with server(run, "--deadline-ms", "60000") as (_, place), browser() as tab:
        ready(place).close()
        ask = asking(encoded(1), "BYTES", [1])
        wanted = said(httpx.post(f"http://{place}/v2/models/run/infer", json=ask))
        tab.open(f"http://{place}/")
        assert tab.value("document.title") == "sidestep"
        tab.drop(tmp_path / "image.png", 300, 300)
        tab.until("!document.getElementById('answer').classList.contains('hidden')")
        best = f"{wanted['label'][0]}, {100 * max(wanted['probabilities']):.1f} %"
        assert tab.value("document.getElementById('label').textContent") == best
        assert tab.value("document.getElementById('exit').textContent") == str(wanted["exit"][0] + 1)
        path = tab.value("[...document.querySelectorAll('#path li')].map(item => item.textContent)")
        assert path == ["\N{EN DASH}" if option < 0 else str(option) for option in wanted["path"]]
        ran = sum(option > 0 for option in wanted["path"])
        assert (
            tab.value("document.getElementById('path-text').textContent") == f"{ran} of {len(path)} units ran"
        )

        # By keyboard: every control in the order of reading, and the file dialog from the last.
        order = []
        for _ in range(3):
            tab.press("Tab")
            order.append(tab.value("document.activeElement.id"))
        assert order == ["model", "budget", "drop"]
        tab.call("Page.setInterceptFileChooserDialog", enabled=True)
        tab.press("Enter")
        tab.value("new Promise(done => setTimeout(done, 200))")
        assert "Page.fileChooserOpened" in [event.get("method") for event in tab.events]
        assert tab.complaints() == []
        if AXE is not None:
            assert tab.barriers() == []

        tab.drop(tmp_path / "text.png", 300, 300)
        tab.until("document.getElementById('error').textContent !== ''")
        assert "image" in tab.value("document.getElementById('error').textContent")
        assert tab.value("document.getElementById('answer').classList.contains('hidden')")
        if AXE is not None:
            assert tab.barriers() == []
