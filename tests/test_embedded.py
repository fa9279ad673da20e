"""What a file of weights says of itself: written once, read back the same, from damaged files too."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core import embedded

FACTS: dict[str, embedded.Value] = {"general.name": "größe", "general.base_model.count": 1, "general.tags": ["a", "b"]}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A safetensors file of two tensors."""
    import torch
    from safetensors.torch import save_file

    save_file({"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.bfloat16)}, tmp_path / "w.safetensors", {"format": "pt"})
    return tmp_path / "w.safetensors"


def test_facts_are_read_back_by_the_library_and_the_tensors_stay(weights: Path) -> None:
    from safetensors import safe_open

    before = embedded.tensors_digest(weights)
    embedded.embed(weights, FACTS)
    with safe_open(weights, "pt") as opened:
        assert opened.get_tensor("b").tolist() == [0.0, 1.0, 2.0]
        assert opened.get_tensor("a").sum() == 4
        told = {"general.name": "größe", "general.base_model.count": "1", "general.tags": "a, b", embedded.TENSORS: before}
        assert opened.metadata() == {"format": "pt", **told}
    assert embedded.said_by(weights) == told
    assert embedded.tensors_digest(weights) == before


def test_equal_weights_and_facts_give_equal_bytes_and_writing_again_changes_nothing(weights: Path) -> None:
    embedded.embed(weights, FACTS)
    once = weights.read_bytes()
    embedded.embed(weights, dict(reversed(FACTS.items())))
    assert weights.read_bytes() == once
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]


def test_the_base_and_the_data_are_told_by_the_names_of_the_gguf_specification() -> None:
    base = {"source": "hub", "name": "owner/name", "revision": "0" * 40, "license": None}
    assert embedded.base_facts(base) == {
        "general.base_model.count": 1,
        "general.base_model.0.name": "owner/name",
        "general.base_model.0.version": "0" * 40,
        "general.base_model.0.repo_url": "https://huggingface.co/owner/name",
    }
    source = {"name": "rows.jsonl", "version": None, "sha256": "1" * 64, "rows": 3, "license": "mit"}
    assert embedded.data_facts([source]) == {
        "general.dataset.count": 1,
        "general.dataset.0.name": "rows.jsonl",
        "luthier.dataset.0.license": "mit",
        "luthier.dataset.0.sha256": "1" * 64,
    }


@given(st.binary(max_size=200), st.sampled_from([b"", b"GGUF\x03\x00\x00\x00" + bytes(8) + b"\x02" + bytes(7), (20).to_bytes(8, "little")]))
def test_any_bytes_say_something_or_nothing_and_never_raise(tmp_path_factory: pytest.TempPathFactory, content: bytes, head: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(head + content)
    assert isinstance(embedded.said_by(path), dict)
    embedded.tensors_digest(path)
