"""The planted set is valid by the standards' own examples, holds what it says, and the detectors find it for every seed."""

import json
import re
from importlib import import_module
from pathlib import Path
from random import Random
from typing import get_args

import pytest

from stages.clean import figures, planted_values
from stages.clean.cleaning import DETECTORS
from stages.clean.planted import planted_set
from stages.core import paths
from stages.core.accounts import is_base58_wallet, is_bech32_wallet
from stages.core.files import canonical_json
from stages.core.national_ids import find_national_ids
from stages.core.params import PersonalKind, SecretKind, load_params
from stages.core.records import write_rows
from stages.core.redaction import Finding
from tests.rows import chat, numbered
from tests.test_clean import clean, params

# published by the issuers or in the standards, no person's
EXAMPLES = {
    "de_tax_id": ["Steuer-ID 86095742719", "IdNr. 47 036 892 816"],
    "fr_nir": ["2 55 08 14 168 025 38"],
    "es_dni": ["DNI: 12345678Z", "NIE X1234567L"],
    "it_codice_fiscale": ["RSSMRA85T10A562S"],
    "nl_bsn": ["BSN 111222333"],
    "ch_ahv": ["756.9217.0769.85"],
    "br_cpf": ["529.982.247-25"],
    "us_ssn": ["SSN 219-09-9998"],
    "uk_nino": ["AB 12 34 56 C"],
}
WALLETS = ["1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLy"]
WITNESS = ["bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq", "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0"]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in EXAMPLES.items() for text in texts])
def test_a_published_example_is_found_and_is_not_with_another_last_digit(kind: str, text: str) -> None:
    assert {finding.kind for finding in find_national_ids(text)} == {kind}
    if kind not in ("us_ssn", "uk_nino"):  # which have no check digit
        last = text[-1]
        others = [text[:-1] + other for other in ("0123456789" if last.isdigit() else "ABCDEFGHIJKLMNOPQRSTUVWXYZ") if other != last]
        assert [other for other in others if find_national_ids(other)] == []


def test_wallets_are_told_by_their_checksum() -> None:
    assert all(map(is_base58_wallet, WALLETS))
    assert all(map(is_bech32_wallet, WITNESS))
    assert not any(is_base58_wallet(value[:8] + ("2" if value[8] != "2" else "3") + value[9:]) for value in WALLETS)
    assert not any(is_bech32_wallet(value[:8] + ("q" if value[8] != "q" else "p") + value[9:]) for value in WITNESS)


@pytest.mark.parametrize("seed", range(8))
def test_recall_and_precision_reach_their_targets_for_every_seed(seed: int) -> None:
    headline, details = figures.measure(DETECTORS, seed)
    assert figures.too_low(headline) == []
    for group in DETECTORS:
        low = {kind: numbers["recall"] for kind, numbers in details[group]["kinds"].items() if (numbers["recall"] or 0) < 0.9}
        assert low == {}, "a kind must not hide behind the others"


def test_the_set_is_the_seeds_and_says_where_its_values_are() -> None:
    texts = list(planted_set(3, per_format=2))
    assert texts == list(planted_set(3, per_format=2))
    assert texts != list(planted_set(4, per_format=2))
    for item in texts:
        assert bool(item.group) == (item.start < item.end <= len(item.text))
    assert {item.kind for item in texts if item.group == "secrets" and item.expected} | {"default"} == set(get_args(SecretKind))
    assert {item.kind for item in texts if item.group == "personal_data" and item.expected} | {"default"} == set(get_args(PersonalKind))


def test_what_is_not_found_is_told_by_format_and_never_by_value() -> None:
    headline, details = figures.measure({"secrets": lambda text: [], "personal_data": lambda text: [Finding(0, 1, "ip")]}, 1)
    assert headline["secrets_recall"] == headline["pii_recall"] == 0
    assert details["secrets"]["not_always_found"]["github_token: classic"] == 0
    assert len(figures.too_low(headline)) == 4
    told = str(details)
    assert [item.text[item.start : item.end] for item in planted_set(1) if item.group and item.text[item.start : item.end] in told] == []


def test_planted_values_know_nothing_of_the_detectors() -> None:
    stages = Path(figures.__file__).parent
    for path in stages.glob("planted*.py"):
        imported = re.findall(r"^(?:from|import) (stages\.\S+)(?: import (.*))?", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert all("planted" in f"{module} {names}" for module, names in imported), path.name


def test_a_planted_account_number_has_the_check_digits_of_the_standard() -> None:
    assert planted_values.iban("GB", "WEST12345698765432") == "GB82WEST12345698765432"
    assert planted_values.luhn("400000000000000") == "4000000000000002"
    assert all(is_base58_wallet(planted_values.base58_wallet(Random(seed))) for seed in range(50))


@pytest.mark.parametrize("action", ["drop", "redact", "keep"])
def test_no_planted_value_of_any_kind_is_told_and_none_is_stored_unless_it_is_kept(action: str) -> None:
    items = [item for item in planted_set(5, per_format=1) if item.group and item.expected]
    rows = numbered([chat(f"What does this say? {item.text}", "It says something, and then the") for item in items])
    kept, rejected, report = clean(rows, params(secrets=action, personal_data=action, max_truncation=0.0))
    values = [json.dumps(item.text[item.start : item.end])[1:-1] for item in items]
    assert min(map(len, values)) > 3
    told = canonical_json(report) + "".join(json.dumps(item.evidence) for item in rejected)
    assert [value for value in values if value in told] == []
    stored = json.dumps([[m["content"] for m in row.messages] for row in [*kept, *(item.row for item in rejected)]])
    assert [value for value in values if value in stored] == (values if action == "keep" else [])


def test_a_figure_below_its_target_is_said_loudly(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stage = import_module("stages.clean.__main__")
    paths.RAW_ROWS.parent.mkdir(parents=True)
    write_rows(paths.RAW_ROWS, numbered([chat("What is the capital of France?", "Paris.")]))
    stage.main(load_params())
    assert "WARNING" not in capsys.readouterr().err
    monkeypatch.setattr(figures, "MIN_RECALL", 1.01)
    stage.main(load_params())
    assert "clean: WARNING: pii_recall is 1.000 on the planted set, below 1.01" in capsys.readouterr().err
