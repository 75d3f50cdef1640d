"""A headless Chromium on a pipe: pages opened, measured, used by keyboard, and what they said and asked for."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REASON = "no Chromium on the path: how the page looks and behaves was not checked"
PATIENCE = 60.0
"""Seconds to wait for an answer."""
BECOME = "import os, sys; r, w = map(int, sys.argv[1:3]); os.dup2(r, 10); os.dup2(w, 11); os.dup2(10, 3); \
os.dup2(11, 4); os.execv(sys.argv[3], sys.argv[3:])"
"""Puts the ends of two pipes where Chromium looks for them, and becomes it."""


class Browser:
    """A Chromium that speaks the DevTools protocol over file descriptors 3 and 4, JSON messages ended by NUL."""

    def __init__(self, profile: Path) -> None:
        theirs_in, self._write = os.pipe()
        self._read, theirs_out = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        options += ["--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        become = [sys.executable, "-c", BECOME, str(theirs_in), str(theirs_out), str(CHROMIUM)]
        self._process = subprocess.Popen(
            [*become, *options],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._left, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def page(self) -> Page:
        """Open an empty page that reports what it says and asks for."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        return page

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command; return its answer, keeping the events that come before it."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def receive(self) -> dict[str, Any]:
        """Return the next message; if it is an event, keep it."""
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._left:
            ready = select.select([self._read], [], [], max(0.0, until - time.monotonic()))[0]
            part = os.read(self._read, 1 << 20) if ready else b""
            assert part, "Chromium does not answer"
            self._left += part
        text, _, self._left = self._left.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def close(self) -> None:
        """End it."""
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        self._process.wait(PATIENCE)


class Page:
    """A page of a browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command to the page."""
        return self.browser.call(method, self.session, **params)

    def open(self, url: str, width: int, scheme: str = "light", *, scripts: bool = True) -> None:
        """Show a page in a window of that width, with or without its scripts, and wait until it is loaded."""
        self.browser.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call("Page.navigate", url=url)
        while not self.heard("Page.loadEventFired"):
            self.browser.receive()

    def heard(self, method: str) -> list[dict[str, Any]]:
        """Return what events of a kind the page has sent since it was opened."""
        events = self.browser.events
        return [e["params"] for e in events if e["method"] == method and e.get("sessionId") == self.session]

    def value(self, expression: str) -> Any:
        """Return what an expression is on the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press a key on what has the focus."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self) -> bytes:
        """Return the whole page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])
