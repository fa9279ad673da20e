"""A real browser for the tests: Chromium, driven over ChromeDriver's WebDriver protocol (W3C) with the standard library alone."""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from stages.cli.page_server import PageServer

Server = TypeVar("Server", bound=PageServer)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Left": "\ue012", "Up": "\ue013", "Right": "\ue014", "Down": "\ue015", "Tab": "\ue004"}
SECONDS = 20.0  # to wait for anything


@contextlib.contextmanager
def served(server: Server) -> Iterator[Server]:
    """A page's server that runs beside the test and is closed after it."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class Browser:
    """One window. Use it as a context."""

    def __init__(self, profile: Path, dark: bool = False, width: int = 1000, height: int = 800) -> None:
        """Starts ChromeDriver on a free port and a window.

        Args:
            profile: an empty folder.
            dark: the look that the page is told the person prefers.
            width: of the window in pixels.
            height: of the window in pixels.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._driver = subprocess.Popen([str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._base = f"http://127.0.0.1:{port}"
        arguments = [
            "--headless=new",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
        ]
        arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
        arguments += ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
        options = {"binary": CHROMIUM, "args": arguments}
        self._session = ""
        try:
            wait_for(lambda: self._call("GET", "/status")["ready"])
            wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
            self._session = f"/session/{self._call('POST', '/session', wanted)['sessionId']}"
        except BaseException:
            self._driver.kill()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("DELETE", self._session)
        finally:
            self._driver.terminate()
            self._driver.wait(SECONDS)

    def open(self, address: str) -> None:
        self._call("POST", f"{self._session}/url", {"url": address})

    def press(self, *keys: str) -> None:
        """Presses and releases keys one after the other, as a person would, wherever the focus is."""
        actions = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", f"{self._session}/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def run(self, script: str) -> Any:
        """What a script of the test returns; the page's own policy forbids it none."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def text(self, element: str) -> str:
        """What an element shows."""
        return str(self.run(f"return document.getElementById({element!r}).textContent"))

    def see(self, element: str, part: str) -> None:
        """Waits until an element shows a text."""
        try:
            wait_for(lambda: part in self.text(element))
        except TimeoutError:
            raise AssertionError(f"{element} shows {self.text(element)!r}, expected {part!r}") from None

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", f"{self._session}/screenshot")))

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()[:500]) from None


def wait_for(condition: Any) -> None:
    """Waits until a condition is true; what is not there yet counts as false."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            if condition():
                return
        except urllib.error.URLError:
            pass
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.05)
