"""A page's server: its files and data for whoever knows the token, on the loopback address, and what a person decides back.

In: HTTP from a browser on this machine. Out: the page and JSON. Other sites' requests and other names for this machine (DNS rebinding)
are refused; the page itself may load nothing from elsewhere.
"""

import json
import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stages.core.errors import UserError

HOST = "127.0.0.1"
MAX_BODY_BYTES = 64 * 1024
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PageServer(ThreadingHTTPServer):
    """Serves one page; what it is about is for its subclass to say."""

    daemon_threads = True
    page = ""  # its files are NAME.html, NAME.js and NAME.css, beside page.js and page.css, which all pages share
    command = ""  # that printed the address

    def __init__(self, port: int) -> None:
        """Binds the port.

        Args:
            port: 0 for any free one.

        Raises:
            UserError: the port is taken.
        """
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"the page cannot be served on port {port} ({error}); leave --port out for a free one") from None
        self.token = secrets.token_urlsafe(24)
        self.lock = threading.Lock()
        self.names = {f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"}

    @property
    def address(self) -> str:
        """Where the page is, token and all."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def files(self) -> dict[str, tuple[str, str]]:
        """The page's files and their kinds, by the name asked for."""
        kinds = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
        names = [f"{self.page}.html", *(f"{stem}.{end}" for stem in ("page", self.page) for end in ("js", "css"))]
        found = {name: (name, f"{kinds[name.rpartition('.')[2]]}; charset=utf-8") for name in names}
        return {**found, "": found[names[0]]}

    def serve_until_stopped(self, *lines: str) -> None:
        """Prints lines, serves until Ctrl-C, and closes.

        Args:
            *lines: what the person is told first.
        """
        with self:
            try:
                print(*lines, sep="\n", flush=True)
                self.serve_forever()
            except KeyboardInterrupt:
                print()

    def state(self) -> dict[str, Any]:
        """What the page shows."""
        return {}

    def told(self, name: str, asked: dict[str, str]) -> dict[str, Any] | None:
        """What a person decided.

        Args:
            name: of the request.
            asked: its texts.

        Returns:
            The answer; None where there is no such request.
        """
        return None


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: PageServer
    server_version = "luthier"
    sys_version = ""
    timeout = 30  # seconds that a connection may be silent

    def do_GET(self) -> None:
        """The page, its files, and the state of what it shows."""
        name = self._asked()
        if name is None:
            return
        files = self.server.files()
        if name in files:
            file, kind = files[name]
            self._send(200, kind, Path(__file__).with_name(file).read_bytes())
        elif name == "state":
            self._answer(self.server.state)
        else:
            self._refuse(404, "no such page")

    def do_POST(self) -> None:
        """A decision."""
        name = self._asked()
        if name is None:
            return
        if self.headers.get("Origin") not in {f"http://{host}" for host in self.server.names}:
            self._refuse(403, "the request comes from another site")
            return
        if self.headers.get_content_type() != "application/json":
            self._refuse(415, "expected JSON")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > MAX_BODY_BYTES:
            self._refuse(413, "the request is too long")
            return
        try:
            asked = json.loads(self.rfile.read(int(length)))
        except ValueError:
            asked = None
        if not isinstance(asked, dict) or not all(isinstance(value, str) for value in asked.values()):
            self._refuse(400, "expected a JSON object of texts")
        else:
            self._answer(lambda: self.server.told(name, asked))

    def _asked(self) -> str | None:
        """What comes after the token; None, and an answer, for a request that has no right to any."""
        if self.headers.get("Host") not in self.server.names:
            self._refuse(403, "this page is served to 127.0.0.1 alone")
            return None
        _, token, *rest = [*urlsplit(self.path).path.split("/"), ""]
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(403, f"the address lacks its token; open the one that {self.server.command} printed")
            return None
        return "/".join(rest).rstrip("/")

    def _answer(self, call: Callable[[], dict[str, Any] | None]) -> None:
        try:
            found = call()
            if found is None:
                self._refuse(404, "no such page")
            else:
                self._send(200, "application/json", json.dumps(found).encode())
        except UserError as error:
            self._refuse(409, str(error))
        except OSError as error:
            self._refuse(500, f"nothing was written: {error}")

    def _refuse(self, code: int, why: str) -> None:
        self.close_connection = True
        self._send(code, "application/json", json.dumps({"error": why}).encode())

    def _send(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the address holds the token."""
