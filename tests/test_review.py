"""The review page: decisions survive anything, strangers get nothing, text is only text, and a person needs only the keyboard."""

import csv
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.cli import review
from stages.cli.page_server import MAX_BODY_BYTES
from stages.cli.review_decisions import DecisionFile
from stages.cli.review_server import ReviewServer
from stages.core import paths
from stages.core.errors import UserError
from stages.core.params import load_params
from stages.core.records import Row, write_rows
from stages.label_check.__main__ import main
from stages.label_check.decisions import COLUMNS, read_decisions
from tests.browser import CHROMIUM, DRIVER, Browser, served
from tests.rows import chat, labelled, numbered
from tests.tiny import ROOT

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def item(name: str, label: str | None = "Permissive", suggested: str | None = "Copyleft", **changes: Any) -> dict[str, Any]:
    """A suspect as the page gets it."""
    plain = {"rank": 1, "kind": "label", "confidence": 0.01, "evidence": "another label is 90 times as probable", "answer": None}
    return {**plain, "id": name, "label": label, "suggested": suggested, "text": f"The text of {name}.", "neighbours": [], **changes}


ITEMS = [
    item("a1"),
    item(
        "b2", text=EVIL, label=EVIL, suggested=EVIL, evidence=EVIL, neighbours=[{"id": "n1", "label": EVIL, "text": EVIL, "answer": None}]
    ),
    item("c3", rank=3),
    item("d4", None, None, kind="conflict", answer="An answer.", neighbours=[{"id": "n2", "label": None, "text": "q", "answer": "a"}]),
]
LABELS = ["Commercial", "Copyleft", "Copyleft Limited", "Permissive", EVIL]


@pytest.fixture
def file(tmp_path: Path) -> DecisionFile:
    """Decisions beside nothing else."""
    return DecisionFile(tmp_path / "data" / "decisions.csv")


@pytest.fixture
def server(file: DecisionFile) -> Iterator[ReviewServer]:
    """A running page about ITEMS."""
    with served(ReviewServer(file, {"items": ITEMS, "labels": LABELS, "who": "ann"}, 0)) as found:
        yield found


# the file


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["keep", "drop"]), st.text(min_size=1), st.text()), max_size=8))
@example([("a", "keep", "=cmd()", '"quoted", and\r\nbroken\x00 '), ("a", "drop", "@x", "-1+1")])
def test_whatever_is_typed_can_be_read_again_and_is_no_formula(typed: list[tuple[str, str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = DecisionFile(Path(folder, "decisions.csv"))
        for row_id, action, who, why in typed:
            if not "".join(c for c in who if c.isprintable()).strip():
                with pytest.raises(UserError, match="write your name"):
                    file.decide(row_id, action, "", who, why)
                continue
            decision = file.decide(row_id, action, "", who, why)
            assert (decision.id, decision.action) == (row_id, action)
            assert not {decision.who[0], *decision.why[:1]} & set("=+-@\t\r")
            kept = " ".join("".join(c if c.isprintable() else " " for c in why).split())
            assert decision.why.removeprefix("'")[:20] == kept.removeprefix("'")[:1000].strip()[:20]
        if file.path.is_file():
            assert len(read_decisions(file.path)) == len(file.path.read_text(encoding="utf-8").splitlines()) - 1


def test_a_second_decision_replaces_the_first_and_undo_brings_it_back(file: DecisionFile) -> None:
    file.decide("a1", "keep", "", "ann", "fine")
    file.decide("b2", "relabel", "Copyleft", "ann", "")
    file.decide("a1", "drop", "", "bob", "no notice")
    assert {name: (d.action, d.label) for name, d in file.all().items()} == {"a1": ("drop", ""), "b2": ("relabel", "Copyleft")}
    assert file.undo() == "a1"
    assert file.all()["a1"].why == "fine"
    assert [file.undo(), file.undo(), file.undo()] == ["b2", "a1", None]
    assert read_decisions(file.path) == []


def test_decisions_of_others_stay_as_they_are_written(file: DecisionFile) -> None:
    file.path.parent.mkdir()
    theirs = 'z9,drop,bob,2026-11-23,"not, a ""notice""",'
    file.path.write_bytes(("\ufeff" + ",".join(COLUMNS) + "\r\n" + theirs).encode())
    file.decide("a1", "keep", "", "ann", "")
    lines = file.path.read_text(encoding="utf-8").splitlines()
    assert lines[1] == theirs
    assert re.fullmatch(r"a1,keep,ann,\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ,,", lines[2])
    file.undo()
    assert file.path.read_text(encoding="utf-8").splitlines()[1:] == [theirs]


def test_a_file_with_a_mistake_in_it_is_told_and_not_touched(file: DecisionFile) -> None:
    file.path.parent.mkdir()
    file.path.write_text(",".join(COLUMNS) + "\na1,remove,ann,,,\n", encoding="utf-8")
    before = file.path.read_bytes()
    with pytest.raises(UserError, match="line 2 has the action 'remove'"):
        file.decide("b2", "keep", "", "ann", "")
    assert file.path.read_bytes() == before


def test_what_was_acknowledged_is_there_after_a_kill_at_any_moment(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stages.cli.review_decisions import DecisionFile\n"
        "file = DecisionFile(Path(sys.argv[1]))\n"
        "for n in range(100_000): file.decide(f'row{n % 40}', 'keep', '', 'ann', f'{n}'); print(n, flush=True)\n"
    )
    for attempt in range(3):
        path = tmp_path / f"{attempt}" / "decisions.csv"
        process = subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(20)]
        time.sleep(random.Random(attempt).random() / 20)
        os.kill(process.pid, signal.SIGKILL)
        said += process.stdout.readlines()
        process.wait()
        last = int([line for line in said if line.endswith("\n")][-1])
        whys = {int(decision.why) for decision in read_decisions(path)}
        assert last in whys
        assert whys - set(range(last + 1)) <= {last + 1}


def test_two_reviewers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "decisions.csv"

    def work(who: str) -> None:
        mine = DecisionFile(path)
        for number in range(15):
            mine.decide(f"{who}{number}", "keep", "", who, "")

    threads = [threading.Thread(target=work, args=(who,)) for who in ("ann", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_decisions(path)) == 30


# the server


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(server: ReviewServer, path: str, body: Any = None, method: str | None = None, raw: bytes | None = None, **headers: str) -> Reply:
    """One request; `path` is what follows the token, or the whole path with a slash at its start."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    data = raw if raw is not None else None if body is None else json.dumps(body).encode()
    sent = {"Origin": f"http://127.0.0.1:{server.server_port}", "Content-Type": "application/json"} if data is not None else {}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    where = path if path.startswith("/") else f"/{server.token}/{path}"
    connection.request(method or ("GET" if data is None else "POST"), where, data, sent)
    reply = connection.getresponse()
    found = Reply(reply.status, dict(reply.getheaders()), reply.read())
    connection.close()
    return found


def keep(name: str, **changes: str) -> dict[str, str]:
    return {"id": name, "action": "keep", "label": "", "who": "ann", "why": "", **changes}


def test_the_page_and_its_files_may_load_nothing_from_elsewhere(server: ReviewServer) -> None:
    for name in ("", "page.js", "page.css", "review.js", "review.css"):
        reply = ask(server, name)
        assert reply.status == 200
        assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
        assert "unsafe" not in reply.headers["Content-Security-Policy"]
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert b"http://" not in reply.body
        assert b"https://" not in reply.body
    for name in ("page.js", "review.js"):
        assert not re.search(rb"innerHTML|outerHTML|insertAdjacent|document\.write|eval", ask(server, name).body)
    assert not re.search(rb"<script>|style=|\son\w+=", ask(server, "").body)


def test_strangers_get_nothing(server: ReviewServer, file: DecisionFile) -> None:
    assert server.server_address[0] == "127.0.0.1"
    port = server.server_port
    refused = [
        ask(server, "/"),
        ask(server, "/state"),
        ask(server, f"/{server.token[:-1]}/state"),
        ask(server, "state", Host=f"evil.example:{port}"),
        ask(server, "state", Host="127.0.0.1"),
        ask(server, "decide", keep("a1"), Origin="http://evil.example"),
        ask(server, "decide", keep("a1"), Origin="null"),
        ask(server, "decide", keep("a1"), Host=f"evil.example:{port}"),
        ask(server, "/wrong/decide", keep("a1")),
    ]
    assert [reply.status for reply in refused] == [403] * len(refused)
    assert not any(server.token.encode() in reply.body or b"The text" in reply.body for reply in refused)
    assert not file.path.exists()


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (keep("zz"), 409, "no such row is under review"),
        (keep("a1", who=" \x00"), 409, "write your name"),
        (keep("a1", action="burn"), 409, "expected one of keep, drop, relabel"),
        (keep("a1", action="relabel"), 409, "a relabelling needs a label"),
        (keep("a1", action="relabel", label="Nonsense"), 409, "is no label of these rows"),
        (keep("d4", action="relabel", label="Copyleft"), 409, "the row has no label to change"),
        ([1], 400, "expected a JSON object"),
        ({"id": 1}, 400, "expected a JSON object"),
    ],
)
def test_what_is_no_decision_is_told_and_writes_nothing(
    server: ReviewServer, file: DecisionFile, body: Any, status: int, told: str
) -> None:
    reply = ask(server, "decide", body)
    assert (reply.status, told in reply.json["error"]) == (status, True)
    assert not file.path.exists()


def test_malformed_requests_are_refused_and_the_server_lives_on(server: ReviewServer) -> None:
    assert ask(server, "decide", raw=b"{").status == 400
    assert ask(server, "decide", raw=b"x" * (MAX_BODY_BYTES + 1)).status == 413
    assert ask(server, "decide", raw=b"{}", Content_Length="-1").status == 413
    assert ask(server, "decide", raw=b"id=a1", Content_Type="application/x-www-form-urlencoded").status == 415
    assert ask(server, "other", {}).status == 404
    assert ask(server, "../params.yaml").status == 404
    assert ask(server, "state", method="DELETE").status == 501
    assert ask(server, "state").status == 200


def test_decisions_are_sent_back_and_written_where_the_stage_reads_them(server: ReviewServer, file: DecisionFile) -> None:
    assert ask(server, "state").json["decisions"] == {}
    ask(server, "decide", keep("a1", action="relabel", label="Copyleft", why="names the GPL"))
    reply = ask(server, "decide", keep("c3"))
    assert {name: d["action"] for name, d in reply.json["decisions"].items()} == {"a1": "relabel", "c3": "keep"}
    [first, _] = read_decisions(file.path)
    assert (first.id, first.label, first.who, first.why) == ("a1", "Copyleft", "ann", "names the GPL")
    assert ask(server, "undo", {}).json["id"] == "c3"
    assert list(ask(server, "state").json["decisions"]) == ["a1"]


def test_a_port_that_is_taken_is_told(server: ReviewServer, file: DecisionFile) -> None:
    with pytest.raises(UserError, match=f"cannot be served on port {server.server_port}"):
        ReviewServer(file, {"items": [], "labels": [], "who": ""}, server.server_port)


# what is shown


@pytest.fixture
def suspected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """A checkout in which label_check found two rows that contradict each other and two answers that do."""
    monkeypatch.chdir(tmp_path)
    pairs = numbered([labelled("one text here", "A"), labelled("one text here!", "B")])
    pairs += numbered([chat("What is it?", "It is this."), chat("What is it?", "Nobody has ever known.")])
    rows = [replace(row, cluster=f"c{number // 2}") for number, row in enumerate(pairs)]
    paths.DEDUPE_ROWS.parent.mkdir(parents=True)
    write_rows(paths.DEDUPE_ROWS, rows)
    paths.DECISIONS.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    main(load_params(ROOT / "params.yaml"))
    return rows


def test_the_page_shows_what_label_check_found_with_the_rows_beside_it(suspected: list[Row]) -> None:
    shown = {found["id"]: found for found in review.suspects(10, None)}
    assert shown.keys() == {row.id for row in suspected}
    one, other, asked, again = suspected
    assert shown[one.id]["neighbours"] == [{"id": other.id, "label": "B", "text": other.text, "answer": None}]
    assert shown[asked.id]["neighbours"] == [{"id": again.id, "label": None, "text": again.text, "answer": again.answer}]
    assert review.known_labels() == ["A", "B"]
    assert len(review.suspects(1, "conflict")) == 1
    with pytest.raises(UserError, match="no suspect is of the kind 'label'; there are: conflict"):
        review.suspects(1, "label")


def test_the_command_prints_the_address_and_ends_with_ctrl_c(suspected: list[Row]) -> None:
    command = [sys.executable, "-m", "stages.cli.main", "review", "--who", "ann"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def heed() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nohup and background jobs hand down an ignored one

    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert re.match(r"4 rows to review: http://127\.0\.0\.1:\d+/[\w-]{32}/$", line)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")


def test_before_label_check_ran_it_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"suspects\.parquet is missing; make it: dvc repro label_check"):
        review.suspects(10, None)


# in a browser


@pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with its driver on this machine (Debian: apt-get install chromium-driver)"
)
def test_a_person_reviews_rows_by_keyboard_alone(server: ReviewServer, file: DecisionFile, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(server.address)
        browser.see("place", "Row 1 of 4")
        browser.see("text", "The text of a1.")
        browser.press("w", *"names the GPL", "Enter", "r", *"copy", "Down", "Enter")
        browser.see("progress", "1 of 4 decided")
        assert [(d.id, d.action, d.label, d.who, d.why) for d in read_decisions(file.path)] == [
            ("a1", "relabel", "Copyleft Limited", "ann", "names the GPL")
        ]
        # a hostile row is only text
        browser.see("place", "b2")
        assert browser.text("text") == EVIL
        assert EVIL in browser.text("labels")
        assert browser.run("return document.querySelectorAll('main img, main script').length") == 0
        assert browser.run("return document.title") == "Review · Luthier"
        browser.press("d")
        browser.see("progress", "2 of 4 decided")
        browser.press("u")
        browser.see("place", "b2")
        browser.see("progress", "1 of 4 decided")
        browser.press("Right", "Right")
        browser.see("answer", "An answer.")
        browser.press("r")
        browser.see("said", "no label to change")
        browser.press("k")
        browser.see("progress", "2 of 4 decided")
        browser.see("place", "b2")
        browser.press("Left", "r", "Escape", "Right", "r", "Enter")  # Escape changes nothing, Enter takes the suggestion
        browser.see("progress", "3 of 4 decided")
        browser.press("k")
        browser.see("said", "All rows are decided")
        browser.open(server.address)  # as after a crash of the browser
        browser.see("progress", "4 of 4 decided")
    assert [d.id for d in read_decisions(file.path)] == ["a1", "d4", "b2", "c3"]
    with file.path.open(encoding="utf-8", newline="") as lines:
        assert all(len(fields) == len(COLUMNS) for fields in csv.reader(lines))
