"""A page in Chromium, driven over its debugging protocol through two pipes."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# The file axe.min.js of npm's axe-core, with which pages are looked through for what screen readers miss.
AXE = os.environ.get("AXE_CORE")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="CHROMIUM MISSING: apt install chromium")
_SECONDS = 60.0
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run")


class Tab:
    """A tab.

    Args:
        reading: file descriptor that Chromium writes to.
        writing: file descriptor that it reads from.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self.writing = reading, writing
        self.events: list[dict[str, Any]] = []
        self.pending, self.count, self.session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Return what a command of the protocol returns; events that come meanwhile are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while (said := self._next()).get("id") != self.count:
            self.events.append(said)
        assert "error" not in said, said["error"]
        return said["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.pending:
            ready, _, _ = select.select([self.reading], [], [], _SECONDS)
            assert ready, "the browser says nothing"
            heard = os.read(self.reading, 1 << 16)
            assert heard, "the browser has gone"
            self.pending += heard
        first, _, self.pending = self.pending.partition(b"\0")
        found: dict[str, Any] = json.loads(first)
        return found

    def open(self, address: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open an address, and wait until it is read."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, script: str) -> Any:
        """Return the value of an expression, awaited."""
        said = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + _SECONDS
        while not self.value(script):
            assert time.monotonic() < end, script
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press a key."""
        code = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowDown": 40}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text
            )
            text = {}

    def drop(self, path: Path, x: float, y: float) -> None:
        """Drop a file somewhere."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def picture(self) -> bytes:
        """Return the page as PNG."""
        said = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(said["data"])

    def complaints(self) -> list[str]:
        """Return what the page has written to its console as errors or warnings, and exceptions."""
        found = []
        for event in self.events:
            said = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(said["exceptionDetails"]))
            elif event.get("method") == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
                found.append(said["entry"]["text"])
            elif event.get("method") == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning"):
                found.append(str(said["args"]))
        return found

    def barriers(self) -> list[str]:
        """Return what axe finds that is serious or worse."""
        assert AXE is not None
        self.value(Path(AXE).read_text() + "; 0")
        found = self.value("axe.run().then(said => said.violations)")
        return [
            f"{each['id']}: {each['help']}" for each in found if each["impact"] in ("serious", "critical")
        ]


@contextmanager
def browser() -> Iterator[Tab]:
    """Yield a tab of a browser that ends with the block."""
    assert CHROMIUM is not None
    theirs, writing = os.pipe()
    reading, others = os.pipe()
    # Chromium reads from 3 and writes to 4.
    command = f'exec "$0" "$@" 3<&{theirs} 4>&{others}'
    process = subprocess.Popen(
        ["bash", "-c", command, CHROMIUM, *_FLAGS],
        pass_fds=(theirs, others),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    os.close(theirs)
    os.close(others)
    try:
        tab = Tab(reading, writing)
        yield tab
        tab.session = ""
        tab.call("Browser.close")
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)
