"""Personal data with a shape that can be checked: e-mail, telephone, IBAN, payment card, national numbers, public IP address, accounts.

In: a text. Out: findings by place and kind, never the value. Names and postal addresses have no such shape and are not looked for.
Copyright years, versions, dates, part numbers and hexadecimal must not be found: what has a check digit is checked, what has none
needs its usual grouping or its usual word before it.
"""

import ipaddress
import re

from stages.core.accounts import find_accounts
from stages.core.national_ids import find_national_ids
from stages.core.redaction import Finding

_EMAIL = re.compile(
    r"(?<![\wÀ-ɏ.+%-])[A-Za-z0-9À-ɏ](?:[\wÀ-ɏ.+%-]{0,62}[\wÀ-ɏ+%-])?@(?P<host>(?:[A-Za-z0-9À-ɏ][A-Za-z0-9À-ɏ-]{0,62}\.)+[A-Za-z]{2,24})(?![\w-])",
    re.ASCII,
)
_NO_MAILBOX = re.compile(  # RFC 2606's reserved names, the user of a git remote, and file names such as icon@2x.png
    r"(?:^|[@.])example\.(?:com|net|org)$|\.(?:example|invalid|test|localhost)$|^git@|@\d+x\.|\.(?:png|jpe?g|gif|svg|webp|css|js|py|html?)$",
    re.IGNORECASE,
)

_EXTENSION = r"(?: ?(?:x|ext\.?) ?\d{1,5})?"
_PHONES = (
    # +44 20 7946 0018: a plus, a country code, groups
    re.compile(rf"(?<![\w+.])\+[1-9]\d{{0,2}}(?:[ .\-/]{{0,2}}\(?\d{{1,5}}\)?){{1,6}}{_EXTENSION}(?!\w|[.-]\d)"),
    # (617) 555-0123, 617-555-0123, 617.555.0123, 1-800-555-0123: North America's three, three, four with one separator
    re.compile(
        r"(?<![\w.+/-])(?:1[ .-])?(?:\([2-9]\d{2}\) ?[2-9]\d{2}[ .-]\d{4}|[2-9]\d{2}(?P<s>[.-])[2-9]\d{2}(?P=s)\d{4})"
        rf"{_EXTENSION}(?!\w|[.-]\d)"
    ),
    # 00 and a country code: 0049 30 1234567; France's pairs: 01 42 68 53 00; British groups: 020 7946 0018; an area code that begins
    # with 0, before a blank, dash or stroke or in brackets: 030 1234567, 08-659 38 72, (030) 1234567
    re.compile(
        r"(?<![\w+./-])(?<!\d )(?:00[1-9]\d{0,2}(?=(?:[ .\-/()]{0,2}\d){7})(?:[ .\-/]?\(?\d{1,5}\)?){2,6}"
        r"|0[1-9](?P<s>[ .-])\d\d(?:(?P=s)\d\d){3}"
        r"|0\d{2,4} \d{3,4} \d{3,4}|0[1-9]\d{1,4} \d{6,8}|\(0\d{1,5}\)[ /-]{0,2}\d{2,4}(?:[ -]?\d{2,4}){1,3}"
        r"|0[1-9]\d{0,3}[/-](?=(?:[ -]?\d){6})\d{2,4}(?:[ -]?\d{2,4}){1,3})"
        rf"{_EXTENSION}(?!\w|[.-]\d| \d)"
    ),
    # Tel.: 020 7946 0018: any grouping after the word
    re.compile(
        r"\b(?:t[eé]l[eé]?(?:[pf](?:h?on[eo]?)?)?|phone|fax|m[oó]bile?|m[oó]vil|handy|cell(?:ulare?)?"
        r"|whatsapp|(?:call|text|ring|reach) (?:me|us)?(?: ?(?:at|on))?|call"
        r"|(?:my|phone|mobile) number(?: is)?)(?: ?(?:no|number|nr))?[.:]{0,2} {0,3}"
        rf"(?P<value>\(?\d(?:[ .\-/()]{{0,2}}\d){{6,14}}{_EXTENSION})(?!\w|[.-]\d)",
        re.IGNORECASE,
    ),
)
# Only e-mail, accounts and IPv6 do without four digits close together or an Italian's year, month and day: most texts are left here.
_DIGITS = re.compile(r"\d(?:(?:[^\w\n]{0,3}\d){3}|\d ?[A-Z]\d\d)")
_DATE = re.compile(
    r"(?:19|20)\d\d[ .\-/](?:\d\d?[ .\-/]\d\d?|(?:19|20)\d\d)|\d\d?[ .\-/](?:\d\d?[ .\-/](?:19|20)\d\d|(?:19|20)\d\d[ .\-/]\d\d?)"
)

_IBAN = re.compile(r"(?<![A-Z0-9-])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_IBAN_LENGTHS = {  # ISO 13616 registry
    length: countries.split()
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD FK", 19: "MK SI", 20: "AT BA EE KZ LT LU XK MN", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST",
        26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU YE",
        31: "MT SC", 32: "LC", 33: "RU",
    }.items()
}  # fmt: skip
_CARD = re.compile(
    r"(?<![\w.+-])(?:\d{4}(?P<s>[ -]?)\d{4}(?P=s)\d{4}(?P=s)\d{1,7}|\d{4}(?P<t>[ -])\d{6}(?P=t)\d{4,5}|\d{14,15})(?!\w|[.-]\d)"
)
_CARD_ISSUER = re.compile(r"4(?:\d{15}|\d{18})|(?:5[1-5]|2[2-7]|35|6[05]|62)\d{14}|3[47]\d{13}|3[068]\d{12}")
_IPV4 = re.compile(r"(?<![\w.:+-])(?<!(?<!/)/)(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d|-\w)")
_VERSION_BEFORE = re.compile(
    r"(?:\bv|version|ver\.?|release|rev(?:ision)?\.?|build|section|clause|§|[<>=~!]=|[\^~<]|(?<!\w)>)[ :=]{0,3}$", re.IGNORECASE
)
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{1,4}(?::{1,2}[0-9A-Fa-f]{1,4}){3,7}(?![\w:])")


def find_personal_data(text: str) -> list[Finding]:
    """Every personal datum with a checkable shape in a text, unordered; spans may overlap.

    Args:
        text: any text.

    Returns:
        Findings of kinds email, phone, iban, card, ip and those of accounts.py and national_ids.py.
    """
    found: list[Finding] = []
    if "@" in text:
        found += [Finding(*match.span(), "email") for match in _EMAIL.finditer(text) if not _NO_MAILBOX.search(match[0])]
    found += find_accounts(text)
    if text.count(":") > 2:
        found += [Finding(*match.span(), "ip") for match in _IPV6.finditer(text) if _is_public(match[0])]
    if not _DIGITS.search(text):
        return found
    found += [Finding(*match.span(), "iban") for match in _IBAN.finditer(text) if is_iban(match[0])]
    found += [Finding(*match.span(), "card") for match in _CARD.finditer(text) if is_card(match[0])]
    found += find_national_ids(text)
    found += [Finding(*match.span(), "ip") for match in _IPV4.finditer(text) if _is_public_ipv4(match, text)]
    # a number that is already something surer is no telephone
    for pattern in _PHONES:
        for match in pattern.finditer(text):
            span = match.span("value" if "value" in pattern.groupindex else 0)
            if _is_phone(text[slice(*span)]) and not any(f.start < span[1] and span[0] < f.end for f in found):
                found.append(Finding(*span, "phone"))
    return found


def _is_phone(value: str) -> bool:
    """Whether a number has a telephone's seven to fifteen digits (ITU-T E.164), is no date and not one digit again and again."""
    digits = re.sub(r"[a-z].*|\D", "", value)
    return 7 <= len(digits) <= 15 and len(set(digits)) > 2 and not _DATE.fullmatch(value.strip("() "))


def is_iban(value: str) -> bool:
    """Whether a text is an IBAN: its country's length, and a remainder of 1 modulo 97 (ISO 7064).

    Args:
        value: letters and digits, in groups or not.

    Returns:
        The verdict.
    """
    compact = value.replace(" ", "")
    if compact[:2] not in _IBAN_LENGTHS.get(len(compact), ()):
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def is_card(value: str) -> bool:
    """Whether a text is a payment card's number: an issuer's prefix and length, and the check digit of ISO/IEC 7812 (Luhn).

    Args:
        value: digits, in groups or not.

    Returns:
        The verdict.
    """
    digits = re.sub(r"\D", "", value)
    if not _CARD_ISSUER.fullmatch(digits):
        return False
    doubled = [int(digit) * 2 for digit in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(number - 9 if number > 9 else number for number in doubled)) % 10 == 0


def _is_public(value: str) -> bool:
    try:
        return ipaddress.ip_address(value).is_global
    except ValueError:
        return False


def _is_public_ipv4(match: re.Match[str], text: str) -> bool:
    """Whether four numbers are an address and not a version: routable, two of them above 9, and no word for version before them."""
    octets = match[0].split(".")
    if sum(len(octet) > 1 for octet in octets) < 2 or _VERSION_BEFORE.search(text[max(0, match.start() - 12) : match.start()]):
        return False
    return _is_public(match[0])
