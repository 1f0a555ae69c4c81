"""Headless Chromium, driven by the DevTools protocol: https://chromedevtools.github.io."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync remote-debugging-port=0"
    " disable-background-networking disable-component-update"
    " autoplay-policy=no-user-gesture-required"
)
START_S, WAIT_S = 60.0, 30.0


class Browser:
    """One page. `errors` has the console's errors and warnings, and uncaught exceptions."""

    def __init__(self, socket_url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._number = 0
        self.errors: list[str] = []
        self._loop.run_until_complete(self._connect(socket_url))
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    async def _connect(self, url: str) -> None:
        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(url, max_msg_size=0)

    def close(self) -> None:
        self._loop.run_until_complete(self._socket.close())
        self._loop.run_until_complete(self._session.close())
        self._loop.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        return self._loop.run_until_complete(self._call(method, parameters))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive(WAIT_S)).data)
            self._note(message)
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded":
            entry = parameters["entry"]
            self.errors.append(f"{entry['text']} {entry.get('url', '')}")
        elif message.get("method") == "Runtime.consoleAPICalled":
            self.errors.append(json.dumps(parameters["args"]))

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript, awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, f"{script}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def wait(self, script: str, within_s: float = WAIT_S) -> None:
        """Returns once the expression is true."""
        until_s = time.monotonic() + within_s
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < until_s, f"never true: {script}\n{self.errors}"
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def click(self, selector: str) -> None:
        self.wait(f"document.querySelector({json.dumps(selector)}) !== null")
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def press(self, key: str, ctrl: bool = False) -> None:
        """A key press by its name, as `j`, `Enter` or `Escape`."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        event = {"key": key, "modifiers": 2 if ctrl else 0}
        code = {"Enter": 13, "Escape": 27, "Tab": 9, " ": 32}.get(key, 0)
        event["windowsVirtualKeyCode"] = code
        down = {"type": "keyDown", "text": text} if text and not ctrl else {"type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", **event, **down)
        self.call("Input.dispatchKeyEvent", **event, type="keyUp")

    def type(self, text: str) -> None:
        """Inserts text where the focus is."""
        self.call("Input.insertText", text=text)

    def size(self, width: int, height: int, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Skips the test where Chromium is not installed. profile: a new folder."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("chromium isn't installed (Debian: apt-get install chromium)")
    command = [program, *(f"--{flag}" for flag in FLAGS.split()), f"--user-data-dir={profile}"]
    with subprocess.Popen([*command, "about:blank"], stderr=subprocess.PIPE, text=True) as process:
        try:
            browser = Browser(_page_socket(process))
            try:
                yield browser
            finally:
                browser.close()
        finally:
            process.terminate()


def _page_socket(process: subprocess.Popen[str]) -> str:
    """The address of the first page's socket."""
    assert process.stderr is not None
    port = None
    while port is None:
        line = process.stderr.readline()
        assert line, "chromium ended"
        port = re.search(r"DevTools listening on ws://[\w.]+:(\d+)/", line)
    until_s = time.monotonic() + START_S
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/json/list") as answer:
            pages = [page for page in json.load(answer) if page["type"] == "page"]
        if pages:
            return pages[0]["webSocketDebuggerUrl"]
        assert time.monotonic() < until_s, "chromium opened no page"
        time.sleep(0.1)
