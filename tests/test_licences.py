"""Which licences of base and data fit which licence of the model, and that a contradiction stops before the first stage."""

from pathlib import Path

import pytest

from stages.core.errors import UserError
from stages.core.licences import conditions, conflict, is_known, mistyped
from stages.core.params import load_params
from stages.fetch_data.user_files import licence_of, read_user_files
from tests import tiny

FORBIDS, SHARES, SAME = "forbids commercial use", "allows no derivative", "asks for the same licence"


@pytest.mark.parametrize(
    ("part", "card", "told"),
    [
        ("CC-BY-4.0", "apache-2.0", None),
        ("apache-2.0", "cc-by-nc-4.0", None),
        ("CC-BY-NC-4.0", "apache-2.0", FORBIDS),
        ("cc-by-nc-4.0", "CC-BY-NC-SA-4.0", None),
        ("PolyForm-Noncommercial-1.0.0", "mit", FORBIDS),
        ("CC-BY-ND-4.0", "cc-by-nd-4.0", SHARES),
        ("CC-BY-NC-ND-4.0", "cc-by-nc-4.0", SHARES),
        ("CC-BY-SA-4.0", "mit", SAME),
        ("CC-BY-SA-3.0", "cc-by-sa-4.0", None),
        ("CC-BY-SA-4.0", "cc-by-sa-3.0", SAME),
        ("CC-BY-SA-4.0", "cc-by-nc-sa-4.0", SAME),
        ("CC-BY-SA-4.0", "gpl-3.0-only", None),
        ("GPL-2.0-only", "GPL-3.0-only", SAME),
        ("GPL-2.0-or-later", "GPL-3.0-only", None),
        ("ODbL-1.0", "odbl-1.0", None),
        ("MIT OR CC-BY-NC-4.0", "mit", None),
        ("MIT AND CC-BY-NC-4.0", "mit", FORBIDS),
        ("llama3.1", "apache-2.0", SAME),
        ("llama3.1", "llama3.1", None),
        ("gemma", "mit", SAME),
        ("CC-BY-NC-4.0", "other", None),
        ("LicenseRef-ours", "mit", None),
    ],
)
def test_a_licence_fits_or_is_contradicted(part: str, card: str, told: str | None) -> None:
    found = conflict(part, card)
    assert (found is None) == (told is None), found
    assert told is None or str(found).startswith(told)


def test_what_an_expression_asks_is_what_its_parts_ask() -> None:
    assert conditions("CC-BY-NC-SA-4.0 AND CC-BY-ND-4.0") == ["non-commercial", "no-derivatives", "share-alike"]
    assert conditions("MIT") == []


def test_a_licence_that_is_none_is_told_with_the_nearest() -> None:
    assert not is_known("CC-BY-NC")
    assert "did you mean Apache-2.0?" in str(mistyped("apache2.0"))
    assert "expected an id of https://spdx.org/licenses" in str(mistyped("qqqqqq"))
    assert mistyped("LicenseRef-ours") is mistyped("mit OR isc") is mistyped("Apache-2.0 WITH LLVM-exception") is None


def test_a_contradiction_stops_before_the_first_stage(place: Path) -> None:
    tiny.edit_params(place, data__source="files", data__files__licenses={"web/*.jsonl": "CC-BY-NC-4.0"})
    said = r"card\.license is apache-2\.0, but the data web/\*\.jsonl is under CC-BY-NC-4\.0, which forbids commercial use"
    with pytest.raises(UserError, match=said):
        load_params()
    tiny.edit_params(place, card__license="cc-by-nc-4.0")
    assert load_params().data.files.licenses == {"web/*.jsonl": "CC-BY-NC-4.0"}
    tiny.edit_params(place, card__license="apache-2.0", data__source="licences")  # whose rows are others
    load_params()
    tiny.edit_params(place, model__package__license="cc-by-nc-4.0")
    with pytest.raises(UserError, match="but the base is under cc-by-nc-4"):
        load_params()


def test_a_mistyped_licence_is_told(place: Path) -> None:
    tiny.edit_params(place, data__files__licenses={"*": "CC-BY-SA-4"})
    with pytest.raises(UserError, match=r"data\.files\.licenses: CC-BY-SA-4 of \* is no SPDX licence; did you mean CC-BY-SA-4\.0\?"):
        load_params()


def test_each_file_has_the_licence_of_the_first_pattern_that_it_fits(place: Path) -> None:
    licences = {"own.jsonl": "MIT", "*": "CC-BY-4.0"}
    assert [licence_of(name, licences) for name in ("own.jsonl", "web/page.jsonl")] == ["MIT", "CC-BY-4.0"]
    for name in ("own.jsonl", "web/page.jsonl"):
        tiny.write_jsonl(place / "data/sources" / name, [{"text": "a notice", "label": "Permissive"}])
    params = load_params().data.files
    about: list[dict[str, object]] = []
    list(read_user_files(Path("data/sources"), params.model_copy(update={"licenses": licences}), about))
    assert [file["license"] for file in about] == ["MIT", "CC-BY-4.0"]
    with pytest.raises(UserError, match=r"data\.files\.licenses names wed/\*, which no file below data/sources fits"):
        list(read_user_files(Path("data/sources"), params.model_copy(update={"licenses": {"wed/*": "MIT"}}), []))
