"""Keys and envelopes: what is signed holds, and no changed byte of it does."""

import getpass
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from stages.cli import signing
from stages.core.errors import UserError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
STATEMENT = {"subject": [{"name": "größe", "digest": {"sha256": "0" * 64}}], "n": 1}
ENVELOPE = signing.seal(STATEMENT, KEY)


def opened(envelope: str) -> tuple[dict[str, Any] | None, str]:
    return signing.unseal(envelope, KEY.public_key(), "it")


def test_a_signed_statement_opens_and_equal_ones_have_equal_bytes() -> None:
    assert opened(ENVELOPE) == (STATEMENT, "")
    assert signing.seal(dict(reversed(STATEMENT.items())), KEY) == ENVELOPE


def test_what_is_signed_is_the_pre_authentication_encoding_of_dsse() -> None:
    # the example of DSSE's protocol.md, with in-toto's payload type in place of http://example.com/HelloWorld
    assert signing.encoded(b"hello world") == b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"


@given(st.integers(0, len(ENVELOPE) - 1), st.characters(codec="ascii"))
def test_no_changed_byte_of_an_envelope_holds(place: int, byte: str) -> None:
    changed = ENVELOPE[:place] + byte + ENVELOPE[place + 1 :]
    assert (opened(changed)[1] == "") == (changed == ENVELOPE)


def test_another_key_is_told_from_a_changed_statement() -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    assert f"not by the key {signing.key_id(other)[:16]}" in signing.unseal(ENVELOPE, other, "it")[1]
    envelope = json.loads(ENVELOPE)
    envelope["payload"] = json.loads(signing.seal(STATEMENT | {"n": 2}, KEY))["payload"]
    assert "does not fit the statement" in opened(json.dumps(envelope))[1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration folder of this test's own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def test_the_private_key_is_its_owners_alone_and_is_never_overwritten(home: Path) -> None:
    identity = signing.make_key(signing.private_key_path(), home / "keys/maker.pub", None)
    assert stat.S_IMODE(signing.private_key_path().stat().st_mode) == 0o600
    key = signing.read_private_key()
    assert key is not None
    assert identity == signing.key_id(key.public_key()) == signing.key_id(signing.read_public_key(home / "keys/maker.pub"))
    with pytest.raises(UserError, match="is there already and a key is never overwritten"):
        signing.make_key(signing.private_key_path(), home / "other.pub", None)
    signing.private_key_path().chmod(0o644)
    with pytest.raises(UserError, match="can be read by others than you; run: chmod 600"):
        signing.read_private_key()


def test_a_passphrase_opens_the_key_and_another_does_not(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signing.make_key(signing.private_key_path(), home / "maker.pub", "correct horse")
    monkeypatch.setattr(getpass, "getpass", lambda prompt: "correct horse")
    assert signing.read_private_key() is not None
    monkeypatch.setattr(getpass, "getpass", lambda prompt: "battery staple")
    with pytest.raises(UserError, match="could not be opened"):
        signing.read_private_key()


def test_what_is_no_public_key_is_told(home: Path) -> None:
    (home / "maker.pub").write_text("-----BEGIN PUBLIC KEY-----\n")
    with pytest.raises(UserError, match="is no Ed25519 public key"):
        signing.read_public_key(home / "maker.pub")
    with pytest.raises(UserError, match="nobody vouches for the statement"):
        signing.read_public_key(home / "none.pub")
