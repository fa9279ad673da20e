"""The review page's server: the page and its data for whoever knows the token, on the loopback address, and decisions back.

In: HTTP from a browser on this machine. Out: the page, JSON, and lines of data/decisions.csv. Other sites' requests and other names
for this machine (DNS rebinding) are refused; the page itself may load nothing from elsewhere.
"""

import json
import secrets
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from stages.cli.review import page_file
from stages.cli.review_decisions import DecisionFile
from stages.core.errors import UserError

HOST = "127.0.0.1"
MAX_BODY_BYTES = 64 * 1024
FILES = {
    "": ("review.html", "text/html; charset=utf-8"),
    "review.js": ("review.js", "text/javascript; charset=utf-8"),
    "review.css": ("review.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class ReviewServer(ThreadingHTTPServer):
    """Serves one list of suspects and one file of decisions."""

    daemon_threads = True

    def __init__(self, decisions: DecisionFile, state: dict[str, Any], port: int) -> None:
        """Binds the port.

        Args:
            decisions: the file.
            state: `items`, `labels` and `who`.
            port: 0 for any free one.
        """
        super().__init__((HOST, port), Handler)
        self.decisions = decisions
        self.state = state
        self.by_id = {item["id"]: item for item in state["items"]}
        self.token = secrets.token_urlsafe(24)
        self.lock = threading.Lock()
        self.names = {f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"}

    @property
    def address(self) -> str:
        """Where the page is, token and all."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"


def serve(decisions: DecisionFile, state: dict[str, Any], port: int) -> ReviewServer:
    """A server that waits for `serve_forever`.

    Args:
        decisions: the file.
        state: `items`, `labels` and `who`.
        port: 0 for any free one.

    Returns:
        The server, bound.

    Raises:
        UserError: the port is taken.
    """
    try:
        return ReviewServer(decisions, state, port)
    except (OSError, OverflowError) as error:
        raise UserError(f"the page cannot be served on port {port} ({error}); leave --port out for a free one") from None


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: ReviewServer
    server_version = "luthier"
    sys_version = ""
    timeout = 30  # seconds that a connection may be silent

    def do_GET(self) -> None:
        """The page, its files, and the state of the review."""
        name = self._asked()
        if name is None:
            return
        if name in FILES:
            file, kind = FILES[name]
            self._send(200, kind, page_file(file))
        elif name == "state":
            self._answer(lambda: {**self.server.state, "decisions": self._decisions()})
        else:
            self._refuse(404, "no such page")

    def do_POST(self) -> None:
        """A decision, or the last one taken back."""
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
        elif name == "decide":
            self._answer(lambda: self._decide(asked))
        elif name == "undo":
            self._answer(self._undo)
        else:
            self._refuse(404, "no such page")

    def _asked(self) -> str | None:
        """What comes after the token; None, and an answer, for a request that has no right to any."""
        if self.headers.get("Host") not in self.server.names:
            self._refuse(403, "this page is served to 127.0.0.1 alone")
            return None
        _, token, *rest = [*urlsplit(self.path).path.split("/"), ""]
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(403, "the address lacks its token; open the one that luthier review printed")
            return None
        return "/".join(rest).rstrip("/")

    def _decide(self, asked: dict[str, str]) -> dict[str, Any]:
        item = self.server.by_id.get(asked.get("id", ""))
        if item is None:
            raise UserError("no such row is under review")
        label = asked.get("label", "")
        if label and (item["label"] is None or label not in self.server.state["labels"]):
            raise UserError(f"'{label}' is no label of these rows" if item["label"] is not None else "the row has no label to change")
        with self.server.lock:
            self.server.decisions.decide(item["id"], asked.get("action", ""), label, asked.get("who", ""), asked.get("why", ""))
            return {"id": item["id"], "decisions": self._decisions()}

    def _undo(self) -> dict[str, Any]:
        with self.server.lock:
            return {"id": self.server.decisions.undo(), "decisions": self._decisions()}

    def _decisions(self) -> dict[str, Any]:
        """Those about the rows under review."""
        return {name: asdict(decision) for name, decision in self.server.decisions.all().items() if name in self.server.by_id}

    def _answer(self, call: Any) -> None:
        try:
            self._send(200, "application/json", json.dumps(call()).encode())
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
