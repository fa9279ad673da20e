"""Ed25519 keys of this user, and statements signed with them in a DSSE envelope.

In: a key, bytes. Out: key files, an envelope, or the sentence that says why one does not hold. The envelope is that of
https://github.com/secure-systems-lab/dsse (envelope.md, protocol.md: the signature is over the pre-authentication encoding).
"""

import base64
import binascii
import getpass
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.errors import UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PUBLIC_KEY = Path("luthier.pub")  # in the repository, unless the user says otherwise


def private_key_path() -> Path:
    """Where the private key lies: $XDG_CONFIG_HOME/luthier, else ~/.config/luthier; never in a repository."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "luthier" / "signing-key.pem"


def make_key(private: Path, public: Path, passphrase: str | None) -> str:
    """Makes a key pair; the private half can be read by its owner alone.

    Args:
        private: where the private key goes.
        public: where the public key goes.
        passphrase: encrypts the private key; None leaves it plain.

    Returns:
        The public key's id.

    Raises:
        UserError: one of the files is there already.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    for path in (private, public):
        if path.exists():
            raise UserError(f"{path} is there already and a key is never overwritten; move it away, or name another file")
    key = Ed25519PrivateKey.generate()
    encryption = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    public.parent.mkdir(parents=True, exist_ok=True)
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, spki))
    return key_id(key.public_key())


def key_id(key: "Ed25519PublicKey") -> str:
    """The sha256 of the public key's 32 bytes, in hexadecimal."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def read_private_key() -> "Ed25519PrivateKey | None":
    """This user's key, asking for its passphrase where it has one.

    Returns:
        The key, or None where there is none.

    Raises:
        UserError: others may read the file, it holds no Ed25519 key, or the passphrase does not open it.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = private_key_path()
    if not path.is_file():
        return None
    if path.stat().st_mode & 0o077:
        raise UserError(f"{path} can be read by others than you; run: chmod 600 {path}")
    content = path.read_bytes()
    passphrase = getpass.getpass(f"passphrase of {path}: ").encode() if b"ENCRYPTED" in content else None
    try:
        key = load_pem_private_key(content, passphrase)
    except ValueError:
        raise UserError(f"{path} could not be opened: the passphrase is another, or the file is no key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path} holds no Ed25519 key; move it away and run: luthier keygen")
    return key


def read_public_key(path: Path) -> "Ed25519PublicKey":
    """A public key as `make_key` writes it.

    Args:
        path: a PEM file.

    Returns:
        The key.

    Raises:
        UserError: it is missing or no Ed25519 public key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if not path.is_file():
        raise UserError(f"{path} is missing, so nobody vouches for the statement; name the maker's public key: --key FILE")
    try:
        key = load_pem_public_key(path.read_bytes())
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path} is no Ed25519 public key as luthier keygen writes it; name the maker's public key: --key FILE")
    return key


def encoded(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def seal(statement: dict[str, Any], key: "Ed25519PrivateKey") -> str:
    """A statement in its signed envelope, as text; equal statements and keys give equal bytes (Ed25519 draws no random number)."""
    payload = json.dumps(statement, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    signature = {"keyid": key_id(key.public_key()), "sig": _base64(key.sign(encoded(payload)))}
    return _text(payload, [signature])


def unseal(envelope: str, key: "Ed25519PublicKey", name: str) -> tuple[dict[str, Any] | None, str]:
    """Opens an envelope.

    Args:
        envelope: what `seal` wrote.
        key: of the one who is believed.
        name: of the envelope, for the sentence.

    Returns:
        The statement, None where there is none to be read, and what does not hold, "" where the signature does. Only a statement that
        comes with "" may be believed.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        found = json.loads(envelope)
        payload = base64.b64decode(found["payload"], validate=True)
        signatures = [(str(entry["keyid"]), base64.b64decode(entry["sig"], validate=True)) for entry in found["signatures"]]
        statement: dict[str, Any] = json.loads(payload)
        # base64 and JSON can write the same in several ways, and a changed byte must not pass for one of them
        whole = envelope == _text(payload, [{"keyid": owner, "sig": _base64(signature)} for owner, signature in signatures])
    except (ValueError, KeyError, TypeError, binascii.Error):
        return None, f"{name} is no signed statement as luthier writes it: it was damaged or changed"
    wanted = key_id(key)
    own = [signature for owner, signature in signatures if owner == wanted]
    if not own:
        makers = ", ".join(owner[:16] for owner, _ in signatures) or "nobody"
        return statement, f"{name} is signed by {makers}, not by the key {wanted[:16]} that was given"
    try:
        key.verify(own[0], encoded(payload))
    except InvalidSignature:
        return statement, f"{name}: the signature does not fit the statement, so one of the two was changed"
    return statement, "" if whole else f"{name} was changed outside the statement"


def _text(payload: bytes, signatures: list[dict[str, str]]) -> str:
    return json.dumps({"payload": _base64(payload), "payloadType": PAYLOAD_TYPE, "signatures": signatures}, indent=1, sort_keys=True) + "\n"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
