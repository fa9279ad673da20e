"""The blind comparison: nobody learns whose answer is whose before the end, votes are kept, and the test on them is exact."""

import csv
import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.cli.blind import BlindServer
from stages.cli.votes import Vote, add_vote, outcome, read_votes, sentence
from stages.core.errors import UserError
from tests.browser import CHROMIUM, DRIVER, Browser, served

EVIL = "<img src=x onerror=\"document.title='owned'\">"
ITEMS = [
    {"id": "a1", "text": "What is it?", "left": "This.", "right": "That.", "side": "tuned"},
    {"id": "b2", "text": EVIL, "left": EVIL, "right": "No.", "side": "base"},
    {"id": "c3", "text": "Third.", "left": "x", "right": "y", "side": "base"},
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BlindServer]:
    """A running page about ITEMS."""
    with served(BlindServer(ITEMS, tmp_path / "votes.csv", "models/adapter", "ann", 0)) as found:
        yield found


@dataclass(frozen=True)
class Reply:
    """Status and JSON of a reply."""

    status: int
    json: dict[str, Any]


def ask(server: BlindServer, name: str, body: dict[str, str] | None = None) -> Reply:
    """One request of the page."""
    link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    headers = {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{server.server_port}"}
    link.request("GET" if body is None else "POST", f"/{server.token}/{name}", None if body is None else json.dumps(body), headers)
    reply = link.getresponse()
    return Reply(reply.status, json.loads(reply.read()))


def votes(server: BlindServer) -> dict[str, str]:
    """Whose answer was the better, by row."""
    return {vote.id: vote.better for vote in read_votes(server.votes, server.artefact)}


def test_before_the_end_nothing_tells_whose_answer_is_whose(server: BlindServer) -> None:
    shown = json.dumps([ask(server, "state").json, ask(server, "vote", {"id": "a1", "choice": "left", "who": "ann"}).json])
    assert not [word for word in ("tuned", "base", "side") if word in shown]
    assert ask(server, "end", {}).json["sides"] == {"a1": "tuned", "b2": "base", "c3": "base"}


def test_a_vote_is_for_the_model_whose_side_was_chosen_and_the_last_one_counts(server: BlindServer) -> None:
    for name, choice in (("a1", "left"), ("b2", "left"), ("c3", "same"), ("b2", "right")):
        assert ask(server, "vote", {"id": name, "choice": choice, "who": "ann"}).json == {"id": name}
    assert votes(server) == {"a1": "tuned", "b2": "tuned", "c3": "neither"}
    lines = list(csv.reader(server.votes.open()))
    assert lines[0] == ["id", "left", "better", "who", "when", "artefact"]
    assert [line[:4] for line in lines[1:]] == [
        ["a1", "tuned", "tuned", "ann"],
        ["b2", "base", "base", "ann"],
        ["c3", "base", "neither", "ann"],
        ["b2", "base", "tuned", "ann"],
    ]
    assert ask(server, "end", {}).json["sentence"].startswith("The tuned model is better on 2 of 2 decided rows")


def test_what_is_no_vote_is_refused_and_not_written(server: BlindServer) -> None:
    vote = {"id": "a1", "choice": "left", "who": "ann"}
    assert ask(server, "vote", vote | {"id": "z9"}).json["error"] == "no such row is asked about"
    assert ask(server, "vote", vote | {"choice": "both"}).status == 409
    assert ask(server, "vote", vote | {"who": " "}).json["error"] == "nobody votes; write your name"
    assert ask(server, "other", vote).status == 404
    assert ask(server, "end", {}).status == 200
    assert "no vote would be blind" in ask(server, "vote", vote).json["error"]
    assert not server.votes.exists()


def test_a_file_of_something_else_is_told_and_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is no list of votes"):
        read_votes(path, "models/adapter")


def test_a_name_that_a_spreadsheet_would_run_is_kept_as_text(tmp_path: Path) -> None:
    assert add_vote(tmp_path / "votes.csv", "a1", "base", "left", "=cmd()", "x").who == "'=cmd()"


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_the_test_is_that_of_fair_coins_and_does_not_care_which_model_is_which(tuned: int, base: int, neither: int) -> None:
    def found(first: int, second: int) -> Any:
        names = ["tuned"] * first + ["base"] * second + ["neither"] * neither
        return outcome([Vote(str(number), "base", name, "ann", "", "") for number, name in enumerate(names)])

    one, other = found(tuned, base), found(base, tuned)
    assert one.p_value == pytest.approx(other.p_value)
    if one.share is None:
        assert (tuned, base, one.p_value) == (0, 0, 1.0)
        return
    assert one.low <= one.share <= one.high
    assert one.share + other.share == pytest.approx(1)
    # the exact interval and the exact test agree where the share is clear, up to the two ways of two-sidedness
    if one.p_value < 0.04:
        assert not one.low < 0.5 < one.high
        assert "preferred" in sentence(one)


def test_a_row_that_several_people_judged_counts_once() -> None:
    judged = [("a", "tuned", "ann"), ("a", "tuned", "bob"), ("a", "base", "cy"), ("b", "tuned", "ann"), ("b", "base", "bob")]
    found = outcome([Vote(name, "base", better, who, "", "") for name, better, who in judged])
    assert (found.tuned, found.base, found.neither) == (1, 0, 1)


def test_nine_of_ten_is_what_a_table_of_the_sign_test_says() -> None:
    names = ["tuned"] * 9 + ["base"]
    found = outcome([Vote(str(number), "base", name, "ann", "", "") for number, name in enumerate(names)])
    assert found.p_value == pytest.approx(0.021484375)  # 2 * (1 + 10) / 2**10
    assert (found.low, found.high) == (pytest.approx(0.5550, abs=1e-4), pytest.approx(0.9975, abs=1e-4))


@pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with its driver on this machine (Debian: apt-get install chromium-driver)"
)
def test_a_person_judges_with_the_keyboard_alone_in_a_real_browser(server: BlindServer, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(server.address)
        browser.see("place", "Pair 1 of 3")
        browser.see("left", "This.")
        assert "tuned" not in browser.run("return document.documentElement.outerHTML")
        browser.press("Left")
        browser.see("progress", "1 of 3 judged")
        browser.see("text", EVIL)
        assert browser.text("left") == EVIL
        browser.press("b")
        browser.see("place", "Pair 1 of 3")
        browser.press("Right")
        browser.see("place", "Pair 2 of 3")
        browser.press("s")
        browser.see("place", "Pair 3 of 3")
        browser.press("Left")
        browser.see("said", "All pairs are judged")
        browser.screenshot(tmp_path / "blind.png")
        browser.press("e")
        browser.see("said", "The tuned model is better on 0 of 2 decided rows")
        assert browser.run("return document.title") == "Blind comparison · Luthier"
        assert votes(server) == {"a1": "base", "b2": "neither", "c3": "base"}
