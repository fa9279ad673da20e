"""The base from a hub: from the local cache without any network, or fetched once from a hub that this file plays on this machine."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from stages.core import models, paths
from tests.tiny import ROOT, edit_params

REPO, COMMIT = "someone/tiny", "0123456789abcdef0123456789abcdef01234567"
CARD = "---\nlicense: mit\n---\nA tiny model.\n"


def fetch(**environment: str) -> subprocess.CompletedProcess[str]:
    """The stage in a process of its own, as huggingface_hub decides whether it is offline when it is imported."""
    env = {key: value for key, value in os.environ.items() if not key.endswith("_OFFLINE")}
    command = [sys.executable, "-m", "stages.fetch_model"]
    return subprocess.run(command, capture_output=True, text=True, env={**env, "PYTHONPATH": str(ROOT), **environment}, check=False)


def hub_layout(cache: Path, source: Path) -> Path:
    """The cache of huggingface_hub as a download leaves it: blobs by digest, a snapshot of links. Returns the snapshot."""
    repo = cache / f"models--{REPO.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(COMMIT)
    snapshot.mkdir(parents=True)
    for file in source.iterdir():
        data = file.read_bytes()
        large = file.suffix == ".safetensors"
        blob = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        (repo / "blobs" / blob).write_bytes(data)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob}")
    (snapshot / "README.md").write_text(CARD)
    return snapshot


@pytest.fixture
def hub(place: Path, tiny_base: Path) -> Path:
    """The snapshot of a repository in the local cache, which params.yaml names."""
    edit_params(place, model__source="hub", model__hub__repo=REPO, model__hub__revision=COMMIT)
    return hub_layout(place / "hub", tiny_base)


def test_a_repository_in_the_cache_is_used_without_any_network(hub: Path) -> None:
    done = fetch(HF_ENDPOINT="http://127.0.0.1:9")  # nobody answers there
    assert (done.returncode, done.stderr) == (0, "")
    manifest = models.read_manifest()
    assert (manifest["name"], manifest["revision"], manifest["license"]) == (REPO, COMMIT, "mit")
    assert str(Path.cwd()) not in paths.BASE.read_text()
    assert models.base_folder(manifest) == hub


def test_a_repository_that_is_not_in_the_cache_is_told_when_offline(place: Path) -> None:
    edit_params(place, model__source="hub", model__hub__repo=REPO, model__hub__revision=COMMIT)
    done = fetch(HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stderr.startswith(f"fetch_model: {REPO} at {COMMIT} is not (wholly) in the Hugging Face cache")
    assert "unset HF_HUB_OFFLINE" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unfinished_download_is_not_taken_for_the_model(hub: Path) -> None:
    (hub / "model.safetensors").unlink()
    assert "not (wholly)" in fetch(HF_HUB_OFFLINE="1").stderr


def test_damaged_weights_in_the_hubs_cache_are_found_by_the_hubs_own_digest(hub: Path) -> None:
    weights = (hub / "model.safetensors").resolve()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = fetch(HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert f"model.safetensors of {REPO} at {COMMIT} is damaged" in done.stderr


class Hub(BaseHTTPRequestHandler):
    """The three answers of a hub that a download needs, for one repository in a folder."""

    folder: Path
    asked: list[str]
    gated = False

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        self.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if self.gated:
            return self._send(b"", 403, {"X-Error-Code": "GatedRepo"})
        files = sorted(self.folder.iterdir())
        if path == f"/api/models/{REPO}/revision/{COMMIT}":
            info = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": f.name, "size": f.stat().st_size} for f in files]}
            return self._send(json.dumps(info).encode())
        if path == f"/api/models/{REPO}/tree/{COMMIT}":
            tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": etag(f)} for f in files]
            return self._send(json.dumps(tree).encode())
        if path.startswith(f"/{REPO}/resolve/{COMMIT}/") and (file := self.folder / Path(path).name).is_file():
            data = file.read_bytes()
            start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
            return self._send(data[start:], 206 if start else 200, {"ETag": f'"{etag(file)}"', "X-Repo-Commit": COMMIT})
        return self._send(b"", 404, {"X-Error-Code": "RepoNotFound"})

    def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def etag(file: Path) -> str:
    data = file.read_bytes()
    return hashlib.sha256(data).hexdigest() if file.suffix == ".safetensors" else hashlib.sha1(data).hexdigest()


@pytest.fixture
def server(place: Path, tiny_base: Path) -> Iterator[tuple[str, type[Hub]]]:
    """A hub on this machine that holds the tiny base, a pickle and a subfolder's worth of nothing; params.yaml names it."""
    shutil.copytree(tiny_base, place / "remote")
    (place / "remote/README.md").write_text(CARD)
    (place / "remote/pytorch_model.bin").write_bytes(b"a pickle")
    edit_params(place, model__source="hub", model__hub__repo=REPO, model__hub__revision=COMMIT)
    handler = type("Here", (Hub,), {"folder": place / "remote", "asked": []})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", handler
    http.shutdown()


def test_a_repository_is_fetched_once_without_its_pickles(server: tuple[str, type[Hub]], place: Path, tiny_base: Path) -> None:
    endpoint, hub = server
    done = fetch(HF_ENDPOINT=endpoint)
    assert done.returncode == 0, done.stderr
    manifest = models.read_manifest()
    folder = models.base_folder(manifest)
    assert (folder / "model.safetensors").read_bytes() == (tiny_base / "model.safetensors").read_bytes()
    assert not (folder / "pytorch_model.bin").exists()
    assert not any("pytorch_model.bin" in asked for asked in hub.asked)
    first = paths.BASE.read_bytes()
    hub.asked.clear()
    assert fetch(HF_ENDPOINT=endpoint).returncode == 0
    assert hub.asked == []
    assert paths.BASE.read_bytes() == first


def test_an_interrupted_download_goes_on(server: tuple[str, type[Hub]], place: Path) -> None:
    endpoint, hub = server
    assert fetch(HF_ENDPOINT=endpoint).returncode == 0
    first = paths.BASE.read_bytes()
    weights = next((place / "hub").glob("*/snapshots/*/model.safetensors"))
    weights.resolve().unlink()
    weights.unlink()
    hub.asked.clear()
    done = fetch(HF_ENDPOINT=endpoint)
    assert done.returncode == 0, done.stderr
    assert paths.BASE.read_bytes() == first
    assert [asked for asked in hub.asked if "/resolve/" in asked and not asked.split()[1].endswith("model.safetensors")] == []


@pytest.mark.parametrize(
    ("gated", "revision", "sentence"),
    [(True, COMMIT, "is gated: accept its terms"), (False, COMMIT[::-1], "does not exist, or is private")],
)
def test_what_the_hub_refuses_is_told_with_the_remedy(
    gated: bool, revision: str, sentence: str, server: tuple[str, type[Hub]], place: Path
) -> None:
    endpoint, hub = server
    hub.gated = gated
    edit_params(place, model__hub__revision=revision)
    done = fetch(HF_ENDPOINT=endpoint)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_that_does_not_answer_is_told_in_a_sentence(place: Path) -> None:
    edit_params(place, model__source="hub", model__hub__repo=REPO, model__hub__revision=COMMIT)
    done = fetch(HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "could not be fetched" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
