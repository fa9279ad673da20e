"""Credentials in a text: providers' token shapes, private keys, passwords in URLs, and assignments of something that looks random.

In: a text. Out: findings by place and kind, never the value. Shapes follow the providers' documentation and the rules of gitleaks.
"""

import math
import re
from collections import Counter

from stages.clean.findings import Finding

_SHAPES: dict[str, str] = {
    # a header alone is documentation; a key has a body
    "private_key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[\s\S]{0,400}?[A-Za-z0-9+/=]{32}"
    r"(?:[\s\S]{0,20000}?-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|[A-Za-z0-9+/=\s]*)",
    "aws_access_key": r"(?<![A-Z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?![A-Z0-9])",
    "github_token": r"(?<!\w)(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{60,255})(?!\w)",
    "gitlab_token": r"(?<!\w)gl(?:pat|dt|rt|cbt|ptt|ft|soat|agent)-[\w-]{20,64}",
    "slack_token": r"(?<!\w)xox[abeoprs]-(?:\d+-)?[A-Za-z0-9-]{10,250}|hooks\.slack\.com/services/T\w{6,}/B\w{6,}/\w{20,}",
    "stripe_key": r"(?<!\w)(?:sk|rk|whsec)_(?:(?:live|test)_)?[A-Za-z0-9]{20,250}(?!\w)",
    "google_key": r"(?<![\w-])AIza[\w-]{35}(?![\w-])|(?<!\w)ya29\.[\w-]{40,}|(?<!\w)GOCSPX-[\w-]{28}",
    "anthropic_key": r"(?<!\w)sk-ant-[\w-]{20,}",
    "openai_key": r"(?<![\w-])sk-(?!ant-)(?:proj-|svcacct-|admin-|or-v1-)?(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[A-Za-z0-9_-]{32,}",
    "hugging_face_token": r"(?<!\w)(?:hf|api_org)_[A-Za-z0-9]{34}(?!\w)",
    "package_token": r"(?<!\w)(?:npm_[A-Za-z0-9]{36}(?!\w)|pypi-AgE[\w-]{50,})",
    "sendgrid_key": r"(?<!\w)SG\.[\w-]{16,32}\.[\w-]{16,64}",
    "jwt": r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}",
}
_PATTERNS = {kind: re.compile(shape) for kind, shape in _SHAPES.items()}
# what each shape cannot do without: most texts hold none of these and are left after one search
_HINTS = re.compile(
    r"PRIVATE KEY|AKIA|ASIA|ABIA|ACCA|gh[pousr]_|github_pat_|gl[a-z]{2,5}-|xox|hooks\.slack|[sr]k_|whsec_|AIza|ya29|GOCSPX|sk-|hf_|api_org_"
    r"|npm_|pypi-|SG\.|eyJ"
)
_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>]{0,64}:(?P<value>[^\s/:@\"'<>]{3,128})@[\w.-]+", re.IGNORECASE)
_ASSIGNMENT = re.compile(
    r"(?:api[_ -]?key|access[_ -]?key(?:[_ -]?id)?|secret(?:[_ -]?(?:access[_ -]?)?key)?|private[_ -]?key|auth[_ -]?key|encryption[_ -]?key"
    r"|(?:access|auth|bearer|refresh|api|secret)?[_ -]?token|client[_ -]?secret|passw(?:or)?d|passphrase|pwd|credentials?)"
    r"[\"'`]?\s{0,3}(?:=>|:=|=|:)\s{0,3}(?P<quote>[\"'`]?)(?P<value>[^\s\"'`<>{}()\[\],;$]{8,256})(?P=quote)",
    re.IGNORECASE,
)
_ASSIGNED = ("key", "token", "secret", "passw", "passphrase", "pwd", "credential")
_BLANKS = re.compile(r"pass(?:word|wd)?\d{0,4}|secret|token|changeme|example|xxx+|\*+|\.{3}|your[_-]|placeholder|redacted", re.IGNORECASE)
MIN_BITS = 3.0  # Shannon entropy a character of an assigned value; English words lie near 2.5, random hexadecimal of 16 near 3.3
MIN_PASSWORD_BITS = 2.5  # a password is named as one, so less is asked of its looks


def find_secrets(text: str) -> list[Finding]:
    """Every credential in a text, unordered; a shape's own documentation example is none.

    Args:
        text: any text.

    Returns:
        Findings; of an assignment or a URL the value alone.
    """
    found: list[Finding] = []
    if _HINTS.search(text):
        for kind, pattern in _PATTERNS.items():
            found += [Finding(match.start(), match.end(), kind) for match in pattern.finditer(text) if "EXAMPLE" not in match[0].upper()]
    if "://" in text:
        found += [Finding(*match.span("value"), "password_in_url") for match in _URL.finditer(text) if not _is_blank(match["value"])]
    folded = text.casefold()
    if not any(word in folded for word in _ASSIGNED):
        return found
    for match in _ASSIGNMENT.finditer(text):
        if _looks_random(match["value"], named_password=match[0][:4].lower() in ("pass", "pwd")):
            found.append(Finding(*match.span("value"), "assigned_secret"))
    return found


def _is_blank(value: str) -> bool:
    """Whether a value stands for one: `password`, `xxxx`, `$PASSWORD`, `%s`."""
    return _BLANKS.match(value) is not None or value[0] in "$%{[" or len(set(value)) < 3


def _looks_random(value: str, named_password: bool) -> bool:
    """Whether an assigned value is a credential and not a word, a path, a number or a name from the program."""
    letters = any(character.isalpha() for character in value)
    digits = any(character.isdigit() for character in value)
    if (
        not (letters and digits)
        or _is_blank(value)
        or "://" in value
        or re.fullmatch(r"[a-z_]+\d?(?:\.[a-z_]+\d?)+|\d+[a-z]+", value, re.I)
    ):
        return False
    return entropy(value) >= (MIN_PASSWORD_BITS if named_password else MIN_BITS) and (named_password or len(value) >= 16)


def entropy(value: str) -> float:
    """The Shannon entropy of a text's characters, in bits a character."""
    return -sum(count / len(value) * math.log2(count / len(value)) for count in Counter(value).values())
