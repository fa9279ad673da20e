"""Credentials in a text: providers' tokens, private keys, and passwords in URLs, headers and config lines.

In: a text. Out: findings by place and kind, never the value. `password = hunter2x` is found by its name and the look of what follows.
"""

import math
import re
from collections import Counter

from stages.core.provider_tokens import find_tokens
from stages.core.redaction import Finding

_PRIVATE_KEYS = (
    re.compile(  # a header alone is documentation; a key has a body
        r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[\s\S]{0,400}?[A-Za-z0-9+/=]{32}"
        r"(?:[\s\S]{0,20000}?-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|[A-Za-z0-9+/=\s]*)"
    ),
    re.compile(r"PuTTY-User-Key-File-\d: [\s\S]{0,4000}?Private-Lines: \d+\s+(?:[A-Za-z0-9+/=]{20,64}\s*)+"),
    re.compile(r"AGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}"),
)
_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>]{0,64}:(?P<value>[^\s/:@\"'<>]{3,128})@[\w.-]+", re.IGNORECASE)
_QUERY = re.compile(
    r"[?&](?:access_token|api_?key|apikey|auth_?token|token|secret|password|sig|X-Amz-Signature)=(?P<value>[\w.~%+/=-]{16,256})",
    re.IGNORECASE,
)
_NAME = (
    r"(?:api[_ -]?key|access[_ -]?key(?:[_ -]?id)?|secret(?:[_ -]?(?:access[_ -]?)?key)?|private[_ -]?key|auth[_ -]?key|encryption[_ -]?key"
    r"|(?:access|auth|bearer|refresh|api|secret)?[_ -]?token|client[_ -]?secret|passw(?:or)?d|passphrase|pwd|credentials?)"
)
_VALUE = r"(?P<quote>[\"'`]?)(?P<value>[^\s\"'`<>{}()\[\],;$]{8,256})(?P=quote)"
_ASSIGNMENTS = (
    re.compile(rf"{_NAME}[\"'`\]]{{0,2}}\s{{0,3}}(?:=>|:=|=|:)\s{{0,3}}{_VALUE}", re.IGNORECASE),
    # <password>…</password> and <add key="Password" value="…"/>
    re.compile(
        rf"<{_NAME}>\s{{0,3}}(?P<value>[^\s<>]{{8,256}})\s{{0,3}}</|{_NAME}[\"'] value=[\"'](?P<other>[^\s\"'<>]{{8,256}})[\"']",
        re.IGNORECASE,
    ),
    # --password …, mysql's IDENTIFIED BY, .netrc
    re.compile(rf"--{_NAME} {_VALUE}", re.IGNORECASE),
    re.compile(rf"\bIDENTIFIED BY {_VALUE}|\blogin \S{{1,64}} password (?P<other>\S{{8,128}})", re.IGNORECASE),
)
# a phrase of letters alone, in quotes, after a name that says password and nothing else
_PHRASE = re.compile(r"(?:passw(?:or)?d|passphrase|pwd)[\"']?\s{0,3}[:=]\s{0,3}([\"'])(?P<value>[^\s\"']{10,64})\1", re.IGNORECASE)
_HEADER = re.compile(r"\bAuthorization[\"']?\s?[:=]\s?[\"']?(?:Basic|Bearer|Token|ApiKey)\s(?P<value>[\w.~+/=-]{12,2000})", re.IGNORECASE)
_CURL_USER = re.compile(r"\s(?:-u|--user)[ =][\"']?[\w.@-]{1,64}:(?P<value>[^\s\"'@]{6,128})")
_ASSIGNED = ("key", "token", "secret", "passw", "passphrase", "pwd", "credential", "identified", "authorization")
_BLANKS = re.compile(
    r"pass(?:word|wd|phrase)?[\d!]{0,4}$|passw(?:or)?d[_-]|secret$|token$|changeme|change[_-]|example|xxx+|\*{3,}|\.{3}|[a-z_-]*your[_-]?|my[_-]"
    r"|placeholder|redacted|test(?:ing)?[\d_-]|dummy|insert|<|none$|null$|undefined$",
    re.IGNORECASE,
)
_NAME_OF_A_CLASS = re.compile(r"(?:[A-Z]+\d?)?(?:[A-Z][a-z]{2,}\d?)+")
MIN_BITS = 3.0  # Shannon entropy a character of an assigned value; English words lie near 2.5, random hexadecimal of 16 near 3.3
MIN_PASSWORD_BITS = 2.5  # a password is named as one, so less is asked of its looks


def find_secrets(text: str) -> list[Finding]:
    """Every credential in a text, unordered; spans may overlap.

    Args:
        text: any text.

    Returns:
        Findings; of an assignment, a header or a URL the value alone.
    """
    found = find_tokens(text)
    if "PRIVATE KEY" in text or "PuTTY" in text or "AGE-SECRET" in text:
        found += [Finding(*match.span(), "private_key") for pattern in _PRIVATE_KEYS for match in pattern.finditer(text)]
    if "://" in text and "@" in text:
        found += [Finding(*match.span("value"), "password_in_url") for match in _URL.finditer(text) if not _is_blank(match["value"])]
    if "=" in text:
        found += [
            Finding(*match.span("value"), "password_in_url") for match in _QUERY.finditer(text) if _looks_random(match["value"], False)
        ]
    assigned = _assigned(text)
    surer = [(finding.start, finding.end) for finding in found]
    return found + [finding for finding in assigned if not any(start < finding.end and finding.start < end for start, end in surer)]


def _assigned(text: str) -> set[Finding]:
    """What a name or a place in a command says is a credential."""
    found: list[Finding] = []
    folded = text.casefold()
    if " -u" in text or " --user" in text:
        found += [Finding(*match.span("value"), "assigned_secret") for match in _CURL_USER.finditer(text) if not _is_blank(match["value"])]
    if not any(word in folded for word in _ASSIGNED):
        return set(found)
    for pattern in _ASSIGNMENTS:
        for match in pattern.finditer(text):
            group = "value" if match["value"] else "other"
            named_password = re.match(r"\W{0,2}(?:pass|pwd|identified|login)", match[0], re.IGNORECASE) is not None
            if _looks_random(match[group], named_password):
                found.append(Finding(*match.span(group), "assigned_secret"))
    found += [Finding(*match.span("value"), "assigned_secret") for match in _PHRASE.finditer(text) if _is_phrase(match["value"])]
    found += [Finding(*match.span("value"), "assigned_secret") for match in _HEADER.finditer(text) if _looks_random(match["value"], True)]
    return set(found)


def _is_blank(value: str) -> bool:
    """Whether a value stands for one: `password`, `xxxx`, `$PASSWORD`, `%s`."""
    return _BLANKS.match(value) is not None or value[0] in "$%{[" or len(set(value)) < 3


def _is_phrase(value: str) -> bool:
    """Whether a quoted password is one that a person chose: no single word of letters, no name from the program."""
    return not _is_blank(value) and not re.fullmatch(r"[A-Za-z_.]+|[A-Z0-9_]+", value) and entropy(value) >= MIN_PASSWORD_BITS


def _looks_random(value: str, named_password: bool) -> bool:
    """Whether an assigned value is a credential and not a word, a path, a number or a name from the program."""
    letters = any(character.isalpha() for character in value)
    digits = any(character.isdigit() for character in value)
    if (
        not (letters and digits)
        or _is_blank(value)
        or "://" in value
        or _NAME_OF_A_CLASS.fullmatch(value)
        or re.fullmatch(r"[a-z_]+\d?(?:\.[a-z_]+\d?)+|\d+[a-z]{1,4}", value, re.I)
    ):
        return False
    return entropy(value) >= (MIN_PASSWORD_BITS if named_password else MIN_BITS) and (named_password or len(value) >= 16)


def entropy(value: str) -> float:
    """The Shannon entropy of a text's characters, in bits a character."""
    return -sum(count / len(value) * math.log2(count / len(value)) for count in Counter(value).values())
