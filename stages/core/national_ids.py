"""Numbers by which a state knows a person: nine countries', with their check digits where they have one.

In: a text. Out: findings by place and kind. What has no strong check must have its own grouping or its word before it, since nine or
eleven digits alone are as often an order number.
"""

import re
import string
from collections.abc import Callable

from stages.core.redaction import Finding


def _after(words: str, value: str) -> re.Pattern[str]:
    """A number after its word, with a few characters such as `no.:` or `is` between."""
    return re.compile(
        rf"(?<![A-Za-z])(?:{words})(?![a-z])[^\n\d]{{0,16}}?[\s:#=(\"'-]{{1,4}}(?P<value>{value})(?!\w|[.-]\d)", re.IGNORECASE
    )


def _is_ssn(digits: str) -> bool:
    """Area, group and serial number of the Social Security Administration's rules; the number of a famous advertisement is none."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000" and digits != "078051120"


def _is_steuer_id(digits: str) -> bool:
    """Check digit of ISO 7064 mod 11,10; of the first ten digits one comes twice or thrice (Bundeszentralamt für Steuern)."""
    most = max(digits[:10].count(digit) for digit in digits[:10])
    if digits[0] == "0" or not 2 <= most <= 3:
        return False
    product = 10
    for digit in digits[:10]:
        product = (int(digit) + product) % 10 or 10
        product = product * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def _is_nir(compact: str) -> bool:
    """97 less the remainder of the first thirteen digits modulo 97; Corsica's 2A and 2B count as 19 and 18 (INSEE)."""
    number = compact[:13].upper().replace("2A", "19").replace("2B", "18")
    return number.isdigit() and 97 - int(number) % 97 == int(compact[13:])


def _is_dni(compact: str) -> bool:
    """The letter at the number's place modulo 23; of a foreigner's number X, Y, Z count as 0, 1, 2 (Ministerio del Interior)."""
    number = compact[:-1].upper().translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == compact[-1].upper()


# what a character counts at an odd place: 0 to 9, then A to Z (Decreto 23 dicembre 1976)
_ODD_DIGITS = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21)
_ODD_LETTERS = (*_ODD_DIGITS, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
_ODD = dict(zip(string.digits + string.ascii_uppercase, _ODD_DIGITS + _ODD_LETTERS, strict=True))


def _is_codice_fiscale(compact: str) -> bool:
    """The letter after the sum of the odd places' table values and the even places' own, modulo 26."""
    value = compact.upper()
    total = sum(_ODD[c] if place % 2 == 0 else int(c) if c.isdigit() else ord(c) - 65 for place, c in enumerate(value[:15]))
    return chr(65 + total % 26) == value[15]


def _is_bsn(digits: str) -> bool:
    """The eleven test: 9 to 2 times the first eight digits, less the ninth, is a multiple of 11 (Rijksdienst voor Identiteitsgegevens)."""
    total = sum(int(digit) * weight for digit, weight in zip(digits, (9, 8, 7, 6, 5, 4, 3, 2, -1), strict=True))
    return total > 0 and total % 11 == 0


def _is_ahv(digits: str) -> bool:
    """EAN-13's check digit."""
    return (sum(int(digit) * (1 + place % 2 * 2) for place, digit in enumerate(digits[:12])) + int(digits[12])) % 10 == 0


def _is_cpf(digits: str) -> bool:
    """Two check digits modulo 11 (Receita Federal)."""
    if len(set(digits)) == 1:
        return False
    for length in (9, 10):
        total = sum(int(digit) * (length + 1 - place) for place, digit in enumerate(digits[:length]))
        if total * 10 % 11 % 10 != int(digits[length]):
            return False
    return True


_NINO_PREFIX = r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]"  # HMRC, NIM39110
_NIR = r"[1-37-8](?P<s>[ .-]?)\d{2}(?P=s)(?:0[1-9]|1[0-2]|[2-9]\d)(?P=s)(?:\d{2}|2[ABab])(?P=s)\d{3}(?P=s)\d{3}"
_WORD = {  # before a number without a strong check
    "us_ssn": r"SSN|social security(?: (?:number|no\.?|#))?",
    "uk_nino": r"NINO|NI (?:number|no\.?)|national insurance(?: (?:number|no\.?))?",
    "de_tax_id": r"steuer[- ]?(?:id(?:entifikationsnummer)?|identnummer)(?:[- ]?(?:nr\.?|nummer))?|steuerliche identifikationsnummer"
    r"|id(?:ent)?[- ]?nr\.?|tax(?:payer)? id(?:entification)?(?: (?:number|no\.?))?|TIN",
    "es_dni": r"DNI|NIE|NIF|documento nacional(?: de identidad)?|identidad",
    "it_codice_fiscale": r"codice fiscale|C\.?F\.?",
    "nl_bsn": r"BSN|burgerservice ?nummer|sofi-?nummer|citizen service number",
    "br_cpf": "CPF",
}
_WORDS_HELD = re.compile(  # the beginnings of those words: most texts have none
    r"ssn|social sec|nino\b|\bni n|national ins|steuer|id(?:ent)?[- ]?nr|tax|\btin\b|dni|nie\b|nif|identidad|documento|codice f|c\.?f\b|bsn"
    r"|burgerserv|sofi|citizen s|cpf"
)
_AFTER = {
    "us_ssn": r"\d{3}(?P<s>[ -]?)\d{2}(?P=s)\d{4}",
    "uk_nino": rf"{_NINO_PREFIX} ?(?:\d\d ?){{3}}[A-D]",
    "de_tax_id": r"\d\d ?\d{3} ?\d{3} ?\d{3}",
    "es_dni": r"(?:\d{8}|[XYZ]-?\d{7})[ -]?[A-HJ-NP-TV-Z]",
    "it_codice_fiscale": r"[A-Z]{3} ?[A-Z]{3} ?\d\d[A-EHLMPRST]\d\d ?[A-Z]\d{3}[A-Z]",
    "nl_bsn": r"\d{3}[ .]?\d{3}[ .]?\d{3}|\d{4}[ .]\d{2}[ .]\d{3}",
    "br_cpf": r"\d{11}",
}
_BEHIND_WORD = [(kind, _after(_WORD[kind], value)) for kind, value in _AFTER.items()]
_ALONE = [  # a grouping or a check of its own
    (kind, re.compile(rf"(?<![\w.+-])(?:{value})(?!\w|[.-]\w)"))
    for kind, value in (
        ("us_ssn", r"\d{3}-\d{2}-\d{4}"),
        ("uk_nino", rf"{_NINO_PREFIX} \d\d \d\d \d\d [A-D]"),
        ("fr_nir", rf"{_NIR}(?P=s)\d\d"),
        ("it_codice_fiscale", r"[A-Z]{6}[\dL-NP-V]{2}[A-EHLMPRST][\dL-NP-V]{2}[A-Z][\dL-NP-V]{3}[A-Z]"),
        ("ch_ahv", r"756\.?\d{4}\.?\d{4}\.?\d{2}"),
        ("br_cpf", r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    )
]
_CHECKS: dict[str, Callable[[str], bool]] = {  # of what remains without blanks, dots and dashes
    "us_ssn": _is_ssn,
    "de_tax_id": _is_steuer_id,
    "fr_nir": _is_nir,
    "es_dni": _is_dni,
    "it_codice_fiscale": _is_codice_fiscale,
    "nl_bsn": _is_bsn,
    "ch_ahv": _is_ahv,
    "br_cpf": _is_cpf,
}


def find_national_ids(text: str) -> list[Finding]:
    """Every national number in a text, unordered; spans may overlap.

    Args:
        text: any text; one without four digits close together holds none.

    Returns:
        Findings of kinds us_ssn, uk_nino, de_tax_id, fr_nir, es_dni, it_codice_fiscale, nl_bsn, ch_ahv, br_cpf.
    """
    found: list[Finding] = []
    for kind, pattern in [*_ALONE, *(_BEHIND_WORD if _WORDS_HELD.search(text.casefold()) else ())]:
        for match in pattern.finditer(text):
            start, end = match.span("value" if "value" in pattern.groupindex else 0)
            compact = re.sub(r"[ .-]", "", text[start:end])
            if kind not in _CHECKS or _CHECKS[kind](compact):
                found.append(Finding(start, end, kind))
    return found
