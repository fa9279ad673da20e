"""Addresses of accounts: a person's page on a social network or code host, and wallets of cryptocurrencies.

In: a text. Out: findings by place and kind `account` (the handle alone, the site stays) and `wallet`.
"""

import hashlib
import re

from stages.core.redaction import Finding

_NO_PERSON = (  # pages of the sites themselves that have the place of a handle
    "about|account|ads|api|apps?|blog|business|careers|company|contact|dialog|discover|docs|download|events?|explore|faq|features|feed|groups?"
    r"|hashtag|help|home|i|images|in|intent|jobs|join|legal|login|logout|marketplace|messages|news|notifications|orgs?|p|pages?|people|plugins"
    r"|policies|posts?|premium|pricing|privacy|products?|profile\.php|reel|search|security|settings|sharer?(?:\.php)?|shop|signin|signup"
    r"|site|sponsors|static|status|stories|support|terms|topics|tos|tr|trending|video|videos|watch|wp-content"
)
_HANDLE = rf"(?!(?:{_NO_PERSON})(?![\w.-]))@?(?P<value>[A-Za-z0-9_](?:[\w.-]{{0,62}}[\w-])?)"
_PROFILES = (
    # a page of its own and nothing below it: github.com/owner/repo is a project
    re.compile(
        r"(?<![\w.-])(?:www\.|m\.|mobile\.)?(?:twitter\.com|x\.com|instagram\.com|facebook\.com|fb\.com|github\.com|gitlab\.com|t\.me|threads\.net"
        rf"|pinterest\.com|patreon\.com|keybase\.io|soundcloud\.com|vk\.com|telegram\.me|ko-fi\.com)/{_HANDLE}/?(?![\w/@-])",
        re.IGNORECASE | re.ASCII,
    ),
    # a path that says person
    re.compile(
        r"(?<![\w.-])(?:[a-z]{2,3}\.)?(?:linkedin\.com/in|reddit\.com/u(?:ser)?|stackoverflow\.com/users/\d+|news\.ycombinator\.com/user\?id="
        r"|snapchat\.com/add|steamcommunity\.com/id|last\.fm/user|venmo\.com/u|bsky\.app/profile|paypal\.me|wa\.me)/?"
        r"(?P<value>[A-Za-z0-9](?:[\w.%-]{0,98}[\w-])?)",
        re.IGNORECASE | re.ASCII,
    ),
    # https://mastodon.social/@ann, medium.com/@ann, youtube.com/@ann, tiktok.com/@ann
    re.compile(
        r"(?<![\w.-])(?:[a-z0-9-]{1,63}\.){1,3}[a-z]{2,12}/@(?P<value>[A-Za-z0-9_](?:[\w.-]{0,62}[\w-])?)", re.IGNORECASE | re.ASCII
    ),
)
_SITES = (".com/", ".me/", ".net/", ".io/", ".app/", ".fm/", "/@")  # where a profile can begin: most texts hold none
_LONG_WORD = re.compile(r"[A-Za-z0-9]{26}")
_WALLETS = (
    re.compile(r"(?<![\w.+/=-])[13][1-9A-HJ-NP-Za-km-z]{25,34}(?![\w+/=])"),
    re.compile(r"(?<![\w.+/=-])(?:bc1[02-9ac-hj-np-z]{11,71}|BC1[02-9AC-HJ-NP-Z]{11,71})(?![\w+/=])"),
    re.compile(r"(?<![\w.+/=-])0x[0-9a-fA-F]{40}(?![\w+/=])"),
)
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_BECH32_CONSTANTS = (1, 0x2BC830A3)  # BIP 173, BIP 350
_GENERATORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def find_accounts(text: str) -> list[Finding]:
    """Every handle in the address of a profile and every wallet in a text, unordered.

    Args:
        text: any text.

    Returns:
        Findings of kinds account and wallet.
    """
    found: list[Finding] = []
    folded = text.casefold()
    if any(site in folded for site in _SITES):
        found += [Finding(*match.span("value"), "account") for pattern in _PROFILES for match in pattern.finditer(text)]
    if not _LONG_WORD.search(text):
        return found
    for pattern, is_valid in zip(_WALLETS, (is_base58_wallet, is_bech32_wallet, _is_hexadecimal_wallet), strict=True):
        found += [Finding(*match.span(), "wallet") for match in pattern.finditer(text) if is_valid(match[0])]
    return found


def is_base58_wallet(value: str) -> bool:
    """Whether a text is an older Bitcoin address: version byte 0 or 5, the first four bytes of a double sha256 at its end."""
    number = 0
    for character in value:
        number = number * 58 + _BASE58.index(character)
    if number >= 1 << 200:
        return False
    data = number.to_bytes(25, "big")
    return data[0] in (0, 5) and hashlib.sha256(hashlib.sha256(data[:21]).digest()).digest()[:4] == data[21:]


def is_bech32_wallet(value: str) -> bool:
    """Whether a text is a segregated witness address: the checksum of BIP 173 or BIP 350."""
    prefix, data = value[:2].lower(), value[3:].lower()
    checksum = 1
    for part in [*(ord(c) >> 5 for c in prefix), 0, *(ord(c) & 31 for c in prefix), *map(_BECH32.index, data)]:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ part
        for bit, generator in enumerate(_GENERATORS):
            checksum ^= generator if top >> bit & 1 else 0
    return checksum in _BECH32_CONSTANTS


def _is_hexadecimal_wallet(value: str) -> bool:
    """Ethereum's have no checksum that needs no Keccak; one digit again and again is none, the zero address among them."""
    return len(set(value[2:].lower())) > 6
