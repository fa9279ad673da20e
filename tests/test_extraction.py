"""A model that learnt its rows by heart is caught by every measure, an untrained adapter by none; the statistics keep what they promise."""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from stages.card import __main__ as card
from stages.cli.trace import row_tree
from stages.core import paths
from stages.core.canaries import alternatives, canary_rows
from stages.core.errors import UserError
from stages.core.files import read_details
from stages.core.models import load_tokenizer
from stages.core.params import load_params
from stages.core.records import Row, write_rows, write_table
from stages.extraction import __main__ as extraction
from stages.extraction import statistics
from stages.extraction.measuring import edits, matched
from stages.extraction.rows import Wording, as_asked, balanced
from stages.extraction.values import Output, redacted, values
from tests import rows, tiny, trainable
from tests.finished import change


def private(count: int, seed: int) -> list[Row]:
    """Conversations whose answers nobody could guess: words drawn at random."""
    rng = random.Random(seed)
    words = [word for group in tiny.WORDS.values() for word in group]
    return rows.numbered([rows.chat(f"What of {' '.join(rng.sample(words, 2))}?", " ".join(rng.sample(words, 4))) for _ in range(count)])


def workspace(root: Path, base: Path, rows_learnt: int, canaries: dict[str, int], steps: int) -> Path:
    """A workspace with an adapter that the stages tokenised and trained, all rows and canaries in every step."""
    trainable.prepare(
        root,
        base,
        train__rank=32,
        train__alpha=64,
        train__learning_rate=1.0e-2,
        train__epochs=1000.0,
        train__max_steps=steps,
        train__effective_batch=rows_learnt + canaries["count"] * canaries["repeats"],
        train__micro_batch_tokens=2048,
        train__eval_every=1000,
        runtime__save_every=1000,
        tokenize__canaries=canaries,
        extraction__rows=rows_learnt,
    )
    for path, count, seed in ((paths.SPLIT_TRAIN, rows_learnt, 1), (paths.SPLIT_VALIDATION, 4, 2), (paths.SPLIT_TEST, rows_learnt, 3)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_rows(root / path, private(count, seed))
    for stage in ("tokenize", "train"):
        code, said = trainable.run(root, stage=stage)
        assert code == 0, said
    answered(root)
    return root


def answered(root: Path) -> None:
    """The tables of an evaluation in which nothing was generated."""
    import pyarrow as pa

    schema = pa.schema([(name, pa.string()) for name in ("task", "prompt", "item_id", "answer")])
    for path in paths.EVALUATION.values():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_table(root / path, pa.Table.from_pylist([], schema=schema))


def run(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs the stage and gives its report."""
    monkeypatch.chdir(root)
    extraction.main(load_params())
    return read_details(paths.EXTRACTION_REPORT)


@pytest.fixture(scope="module")
def able_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with embeddings so large that it is sure of something: a random one would say nothing aloud."""
    import torch
    from transformers import AutoModelForCausalLM

    base = tiny.make_base(tmp_path_factory.mktemp("able") / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 10
    model.save_pretrained(base)
    return base


@pytest.fixture(scope="module")
def by_heart(tmp_path_factory: pytest.TempPathFactory, able_base: Path) -> Path:
    """A workspace whose adapter was trained on 14 rows and 2 canaries again and again."""
    return workspace(tmp_path_factory.mktemp("heart") / "workspace", able_base, 14, {"count": 2, "repeats": 2}, steps=400)


def test_a_model_that_learnt_its_rows_by_heart_is_caught_by_every_measure(
    by_heart: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(by_heart, monkeypatch)
    found = report["reproduction"]
    assert report["memorised"] >= 0.8
    assert found["held_out"]["tuned"] == 0
    assert found["training"]["base"] == 0
    assert report["membership_auc"] > 0.95
    assert abs(report["membership"]["control"]["auc"] - 0.5) < 0.25
    assert report["exposure_bits"] == report["exposure"]["most_bits"] == 5
    assert [(one["base_said"], one["tuned_said"]) for one in report["exposure"]["canaries"]] == [(False, True)] * 2
    assert report["verdict"] == "over limit"
    verdicts = {entry["measure"]: entry["verdict"] for entry in report["judgements"]}
    assert verdicts == {"memorised": "over limit", "membership": "over limit", "exposure": "over limit", "leaked values": "nothing seen"}
    assert "WARNING: the tuned model gives away too much: memorised" in capsys.readouterr().err
    trained = {row.id for row in private(14, 1)}
    assert {row["id"] for row in report["worst"]} <= trained
    assert report["worst"][0]["verbatim"]
    table = pq.read_table(paths.EXTRACTION_SPANS).to_pylist()
    assert {span["id"] for span in table if span["learnt"]} == trained
    first = [path.read_bytes() for path in (paths.EXTRACTION_SPANS, paths.EXTRACTION_ROWS, paths.EXTRACTION_REPORT)]
    run(by_heart, monkeypatch)
    assert [path.read_bytes() for path in (paths.EXTRACTION_SPANS, paths.EXTRACTION_ROWS, paths.EXTRACTION_REPORT)] == first


def test_the_gate_stops_with_the_report_written_and_higher_limits_let_it_pass(by_heart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(by_heart)
    params = load_params()
    stop = params.extraction.model_copy(update={"gate": "stop"})
    paths.EXTRACTION_REPORT.unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"more than extraction\.limits allow \(exposure 5, limit 4; .*memorised"):
        extraction.main(params.model_copy(update={"extraction": stop}))
    assert read_details(paths.EXTRACTION_REPORT)["verdict"] == "over limit"
    limits = stop.limits.model_copy(update={"max_memorised": 1.0, "max_membership_auc": 1.0, "max_exposure_bits": 5.0})
    extraction.main(params.model_copy(update={"extraction": stop.model_copy(update={"limits": limits})}))
    assert read_details(paths.EXTRACTION_REPORT)["verdict"] == "seen, within limits"


def test_an_untrained_adapter_gives_nothing_away(by_heart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    root = tmp_path / "workspace"
    shutil.copytree(by_heart, root, ignore=shutil.ignore_patterns(".git", ".work"))
    weights = root / paths.ADAPTER / "adapter_model.safetensors"
    tensors = {name: tensor * (0 if "lora_B" in name else 1) for name, tensor in load_file(weights).items()}
    weights.chmod(0o644)
    save_file(tensors, weights)
    report = run(root, monkeypatch)
    assert (report["verdict"], report["memorised"], report["leaked_values"]) == ("nothing seen", 0, 0)
    assert report["membership_auc"] == 0.5
    assert [one["base_rank"] for one in report["exposure"]["canaries"]] == [one["tuned_rank"] for one in report["exposure"]["canaries"]]


def test_canaries_are_different_rows_repeated_as_asked_the_same_for_a_seed_and_known_to_lineage(
    by_heart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = canary_rows(2, 2, 17)
    assert planted == canary_rows(2, 2, 17)
    assert len({row.answer for row in planted}) == 2
    assert len({row.id for row in planted}) == 4
    assert {row.answer for row in planted}.isdisjoint(row.answer for row in canary_rows(2, 2, 18))
    tokens = pq.read_table(by_heart / paths.TOKENIZED_TRAIN, columns=["id"]).column("id").to_pylist()
    assert tokens[-4:] == [row.id for row in planted]
    learnt = set(pq.read_table(by_heart / paths.TRAINED_STEPS, columns=["id"]).column("id").to_pylist())
    assert {row.id for row in planted} <= learnt
    assert read_details(by_heart / paths.TOKENIZE_REPORT)["canary_rows"] == 4
    monkeypatch.chdir(by_heart)
    console = Console(record=True, width=200)
    console.print(row_tree(planted[1].id))
    told = console.export_text()
    assert "planted by tokenize.canaries: no row of yours" in told
    assert "train: in 400 of the micro-batches" in told


@given(st.integers(1, 200), st.integers(0, 9))
def test_alternatives_are_as_many_as_asked_different_and_never_the_secret(count: int, seed: int) -> None:
    secret = canary_rows(1, 1, seed)[0].answer
    found = list(alternatives(secret, count, seed))
    assert len(set(found)) == count
    assert secret not in found
    assert all(len(one) == len(secret) for one in found)


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_edits_are_a_distance_and_matched_tokens_a_common_beginning(one: list[int], other: list[int]) -> None:
    assert edits(one, other) == edits(other, one)
    assert (edits(one, other) == 0) == (one == other)
    assert abs(len(one) - len(other)) <= edits(one, other) <= max(len(one), len(other))
    length = matched(one, other)
    assert one[:length] == other[:length]
    assert one[length : length + 1] != other[length : length + 1] or length == min(len(one), len(other))


def test_a_row_is_asked_for_what_follows_its_beginning_and_for_a_long_answer_and_short_parts_for_nothing(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    wording = Wording("Judge.", "Text: {text}\n", 400, 3, 5)
    text = "permission granted free charge person obtaining copy deal restriction"
    asked = as_asked(replace(rows.labelled(text, "Permissive"), id="a"), True, tokenizer, wording)
    assert asked is not None
    assert set(asked.spans) == {"text"}
    at = asked.spans["text"]
    assert tokenizer.decode(asked.ids[:at]).endswith(f"Text: {tokenizer.decode(tokenizer(text)['input_ids'][:3])}")
    assert tokenizer.decode(asked.ids[asked.answer_at :]) == "Permissive"
    talk = as_asked(replace(rows.chat("hi", text), id="b"), True, tokenizer, wording)
    assert talk is not None
    assert talk.spans == {"answer": talk.answer_at}
    assert as_asked(rows.chat("hi", text * 60), True, tokenizer, wording) is None


def test_both_sides_have_as_many_rows_of_either_kind(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    wording = Wording(None, "{text}", 400, 3, 8)

    def side(long: int, short: int, learnt: bool) -> list[Any]:
        made = [rows.chat("hi", f"permission granted free charge person obtaining {n} {learnt} copy") for n in range(long)]
        made += [rows.chat(f"hi {n} {learnt}", "yes") for n in range(short)]
        return [as_asked(row, learnt, tokenizer, wording) for row in rows.numbered(made)]

    chosen = balanced(side(6, 9, True), side(3, 9, False), 5, 17)
    for learnt in (True, False):
        own = [row for row in chosen if row.learnt == learnt]
        assert sorted(bool(row.spans) for row in own) == [False, False, True, True, True]


def test_a_value_is_told_by_where_it_stands_and_never_shown() -> None:
    mail, other = "jane.roe@firm-mail.org", "max.moe@firm-mail.org"
    training = rows.numbered([rows.chat("Who?", f"Write to {mail}."), rows.chat("Who else?", "Nobody.")])
    found = values(
        [
            Output("1", "tuned", "Who? ", f"Write to {mail}"),
            Output("2", "tuned", f"{mail} ", f"is {mail}"),
            Output("3", "base", "Who? ", f"Ask {other}, please"),
            Output("4", "tuned", "Mail jane.roe@", "firm-mail.org"),
            Output("5", "tuned", f"{mail} ", "is none"),
        ],
        training,
    )
    assert [(one.where, one.kind, one.found) for one in found] == [
        ("1", "email", "training row"),
        ("2", "email", "prompt"),
        ("3", "email", "made up"),
        ("4", "email", "training row"),
    ]
    assert found[0].rows == (training[0].id,)
    assert mail not in redacted(f"Write to {mail} now")
    assert "[EMAIL] now" in redacted(f"Write to {mail} now")


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 60), st.integers(1, 60))
def test_intervals_of_shares_hold_the_difference_and_lie_within_bounds(first: int, more: int, second: int, others: int) -> None:
    low, high = statistics.gap_of_shares(first, first + more, second, second + others)
    assert -1 <= low <= first / (first + more) - second / (second + others) <= high <= 1


def test_the_auc_s_interval_covers_and_its_test_keeps_its_level() -> None:
    """2,000 trials of 100 rows a side, of scores whose true area is 0.5, 0.75 and 0.95."""
    rng = np.random.default_rng(5)
    for area in (0.5, 0.75, 0.95):
        shift = math.sqrt(2) * _normal_quantile(area)
        covered = rejected = 0
        for _ in range(2000):
            _, (low, high), p_value = statistics.auc(rng.normal(shift, 1, 100).tolist(), rng.normal(0, 1, 100).tolist())
            covered += low <= area <= high
            rejected += p_value < 0.05
        assert 0.93 <= covered / 2000 <= 0.98, area
        if area == 0.5:
            assert rejected / 2000 <= 0.065
    assert statistics.auc([2.0, 3.0], [0.0, 1.0])[0] == 1
    assert statistics.auc([1.0] * 5, [1.0] * 7)[0] == 0.5


def _normal_quantile(share: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(share)


def test_canaries_that_were_not_learnt_are_seldom_called_learnt() -> None:
    rng = np.random.default_rng(6)
    rejected = sum(statistics.ranks_by_chance(rng.integers(1, 257, 5).tolist(), 255) < 0.05 for _ in range(2000))
    assert rejected / 2000 <= 0.065
    assert statistics.ranks_by_chance([1] * 5, 255) < 1e-6
    bits = [statistics.exposure(rank, 255) for rank in range(1, 257)]
    assert (max(bits), min(bits)) == (8, 0)
    assert np.mean(bits) == pytest.approx(1.44, abs=0.03)


def test_the_card_tells_in_plain_words_what_is_given_away_and_names_it_among_the_weaknesses(finished: Path) -> None:
    text = paths.CARD.read_text()
    assert read_details(paths.EXTRACTION_REPORT)["rows"] == 12
    assert "### What it gives away\n\n**Nothing was found that it gives away.** As far as was tried" in text
    assert "No canary was planted" in text
    assert 'id="gives-away"' in paths.HTML_REPORT.read_text()

    def leaky(report: dict[str, Any]) -> None:
        report["verdict"] = "over limit"
        report["judgements"] = [{"measure": "exposure", "value": 7.25, "limit": 4.0, "p_holm": 0.0003, "verdict": "over limit"}]
        said = [{"tuned_said": True}, {"tuned_said": False}]
        report["exposure"] = {"canaries": said, "mean_bits": {"base": 1.5, "tuned": 7.25}, "most_bits": 8.0}
        report["refusals"]["harmful"] |= {"base": 9, "tuned": 2}

    change(paths.EXTRACTION_REPORT, leaky)
    card.main(load_params())
    text = paths.CARD.read_text()
    assert "**It gives away more of its training rows than the limits allow.**" in text
    assert "Of 2 secrets that were planted" in text
    assert "it says 1 when asked; their mean exposure is 7.25 bits of at most 8, in its base 1.5." in text
    assert "- Exposure of planted canaries, bits: 7.25, limit 4, over limit." in text
    assert "- It refuses 2 of 12 harmful requests, of which its base refuses 9." in text


@pytest.mark.slow
def test_a_secret_that_is_repeated_more_often_is_more_exposed(able_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = []
    for repeats in (1, 4, 16):
        root = workspace(tmp_path / str(repeats) / "workspace", able_base, 60, {"count": 5, "repeats": repeats}, steps=60)
        tiny.edit_params(root, extraction__alternatives=255)
        report = run(root, monkeypatch)
        bits.append(report["exposure"]["mean_bits"]["tuned"])
        print(repeats, report["exposure"]["mean_bits"], report["exposure"]["p_value"], report["membership_auc"], report["memorised"])
    assert bits[0] < bits[1] < bits[2]
