"""Made-up values of every kind that clean looks for, drawn from a seed, with check digits by code of their own.

In: a random generator. Out: a value, with the words that stand around it where its format asks for them. Nothing here knows the
detectors' expressions: formats follow the issuers' documentation, and some of them are not found (planted.py says which were).
"""

import base64
import hashlib
import json
import string
from collections.abc import Callable
from random import Random

DIGITS, UPPER, LOWER, ALNUM = string.digits, string.ascii_uppercase, string.ascii_lowercase, string.ascii_letters + string.digits
HEX = "0123456789abcdef"
FIRST = ("ann", "bob", "carla", "dmitri", "elena", "farid", "grace", "hiro", "ines", "jonas", "kwame", "lucia", "mehmet", "nadia", "olu")
LAST = ("smith", "garcia", "mueller", "rossi", "tanaka", "okafor", "novak", "dubois", "jansen", "silva", "kowalski", "haddad", "berg")
HOSTS = ("gmail.com", "corp-mail.co.uk", "uni-bonn.de", "mail.acme.io", "outlook.com", "orange.fr", "bank.com.br", "sub.dept.agency.gov")
Value = tuple[str, str, str]  # what stands before it, the value, what stands after it
Maker = Callable[[Random], Value]


def draw(rng: Random, alphabet: str, length: int) -> str:
    """Characters drawn with repetition."""
    return "".join(rng.choices(alphabet, k=length))


def mixed(rng: Random, length: int, alphabet: str = ALNUM) -> str:
    """Characters drawn until they hold a letter and a digit, as what a machine draws nearly always does."""
    while True:
        value = draw(rng, alphabet, length)
        if any(c.isdigit() for c in value) and any(c.isalpha() for c in value):
            return value


def filled(rng: Random, pattern: str) -> str:
    """A pattern with `#` a digit, `P` one of 1 to 9, `N` one of 2 to 9, `A` a letter, and all else itself."""
    sets = {"#": DIGITS, "P": DIGITS[1:], "N": DIGITS[2:], "A": UPPER}
    return "".join(rng.choice(sets[c]) if c in sets else c for c in pattern)


def plain(make: Callable[[Random], str]) -> Maker:
    """A value that stands alone."""
    return lambda rng: ("", make(rng), "")


def after(words: tuple[str, ...], make: Callable[[Random], str]) -> Maker:
    """A value behind one of some words."""
    return lambda rng: (rng.choice(words), make(rng), "")


# check digits


def luhn(body: str) -> str:
    """The digits with their ISO/IEC 7812 check digit."""
    total = 0
    for place, digit in enumerate(reversed(body)):
        number = int(digit) * (2 if place % 2 == 0 else 1)
        total += number // 10 + number % 10
    return body + str(-total % 10)


def iban(country: str, body: str) -> str:
    """The account number with country and ISO 7064 check digits before it."""
    remainder = 0
    for character in body + country + "00":
        number = ord(character) - 55 if character.isalpha() else int(character)
        remainder = (remainder * (100 if number > 9 else 10) + number) % 97
    return f"{country}{98 - remainder:02d}{body}"


def steuer_id(rng: Random) -> str:
    """Eleven digits of the Bundeszentralamt: one digit twice, one not at all, and a check digit."""
    while True:
        digits = rng.sample(DIGITS, 9)
        digits.insert(rng.randrange(1, 10), rng.choice(digits))
        if digits[0] != "0":
            break
    state = 10
    for digit in digits:
        total = (state + int(digit)) % 10
        state = (total if total else 10) * 2 % 11
    check = 11 - state
    return "".join(digits) + str(0 if check == 10 else check)


def nir(rng: Random) -> str:
    """Sex, year, month, department, town, order, key."""
    body = f"{rng.choice('12')}{rng.randrange(100):02d}{rng.randrange(1, 13):02d}{rng.randrange(1, 96):02d}"
    body += f"{rng.randrange(1, 990):03d}{rng.randrange(1, 1000):03d}"
    return body + f"{97 - int(body) % 97:02d}"


def dni(rng: Random) -> str:
    """Eight digits and their letter, or a foreigner's number."""
    number = rng.randrange(10**7, 10**8)
    letters = "TRWAGMYFPDXBNJZSQVHLCKE"
    if rng.random() < 0.4:
        first = rng.randrange(3)
        number = number % 10**7
        return f"{'XYZ'[first]}{number:07d}{letters[(first * 10**7 + number) % 23]}"
    return f"{number}{letters[number % 23]}"


def codice_fiscale(rng: Random) -> str:
    """Six letters of the name, year, month, day, town, and the letter that checks them."""
    day = rng.randrange(1, 29) + rng.choice((0, 40))
    body = f"{draw(rng, 'BCDFGLMNPRSTVZ', 3)}{draw(rng, 'BCDFGLMNPRSTVZ', 2)}{rng.choice('AEIO')}{rng.randrange(30, 100):02d}"
    body += f"{rng.choice('ABCDEHLMPRST')}{day:02d}{rng.choice('ABCDEFGHIL')}{rng.randrange(1, 1000):03d}"
    order = (
        "BAKPLCQDREVOSFTGUHMINJWZYX"  # a letter's place here is what it counts at an odd place; a digit counts as the letter of its rank
    )
    total = 0
    for number, character in enumerate(body, start=1):
        rank = int(character) if character.isdigit() else UPPER.index(character)
        total += order.index(UPPER[rank]) if number % 2 else rank
    return body + UPPER[total % 26]


def bsn(rng: Random) -> str:
    """Nine digits that pass the eleven test."""
    while True:
        body = filled(rng, "P#######")
        check = sum((9 - place) * int(digit) for place, digit in enumerate(body)) % 11
        if check < 10:
            return body + str(check)


def ahv(rng: Random) -> str:
    """Switzerland's thirteen digits."""
    body = "756" + draw(rng, DIGITS, 9)
    total = sum(int(body[place]) for place in range(0, 12, 2)) + 3 * sum(int(body[place]) for place in range(1, 12, 2))
    return body + str(-total % 10)


def cpf(rng: Random) -> str:
    """Brazil's nine digits and two check digits."""
    body = draw(rng, DIGITS, 9)
    for _ in range(2):
        remainder = sum(int(digit) * weight for weight, digit in enumerate(reversed(body), start=2)) % 11
        body += str(0 if remainder < 2 else 11 - remainder)
    return body


def ssn(rng: Random) -> str:
    """Nine digits with an area that was given out."""
    area = rng.choice([number for number in range(1, 900) if number != 666])
    return f"{area:03d}{rng.randrange(1, 100):02d}{rng.randrange(1, 10000):04d}"


def nino(rng: Random) -> str:
    """Two letters, six digits, a letter."""
    prefix = rng.choice(("AB", "CE", "JG", "HR", "MW", "PX", "SC", "TY", "WK", "ZR"))
    return f"{prefix}{draw(rng, DIGITS, 6)}{rng.choice('ABCD')}"


def base58_wallet(rng: Random) -> str:
    """A Bitcoin address of version 0 or 5."""
    data = bytes([rng.choice((0, 5))]) + rng.randbytes(20)
    data += hashlib.sha256(hashlib.sha256(data).digest()).digest()[:4]
    number, text = int.from_bytes(data, "big"), ""
    alphabet = "".join(c for c in DIGITS + UPPER + LOWER if c not in "0OIl")
    while number:
        number, remainder = divmod(number, 58)
        text = alphabet[remainder] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


def bech32_wallet(rng: Random) -> str:
    """A segregated witness address, version 0 (BIP 173) or 1 (BIP 350)."""
    version = rng.choice((0, 1))
    program = rng.randbytes(20 if version == 0 else 32)
    bits = "".join(f"{byte:08b}" for byte in program)
    bits += "0" * (-len(bits) % 5)
    data = [version, *(int(bits[place : place + 5], 2) for place in range(0, len(bits), 5))]
    state = 1
    for value in [3, 3, 0, 2, 3, *data, *[0] * 6]:  # the prefix bc, expanded
        top, state = state >> 25, (state & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            if top >> bit & 1:
                state ^= generator
    state ^= 1 if version == 0 else 0x2BC830A3
    data += [state >> 5 * (5 - place) & 31 for place in range(6)]
    return "bc1" + "".join("qpzry9x8gf2tvdw0s3jn54khce6mua7l"[value] for value in data)


def ethereum_wallet(rng: Random) -> str:
    """Forty hexadecimal digits; a third in mixed case, as checksummed ones are."""
    value = draw(rng, HEX, 40)
    return "0x" + ("".join(rng.choice((c, c.upper())) for c in value) if rng.random() < 0.33 else value)


# keys


def pem(rng: Random, name: str, lines: int, breaks: str = "\n", head: str = "") -> str:
    """A private key in PEM armour."""
    body = breaks.join(draw(rng, ALNUM + "+/", 64) for _ in range(lines)) + breaks + draw(rng, ALNUM + "+/", 26) + "=="
    return f"-----BEGIN {name}-----{breaks}{head}{body}{breaks}-----END {name}-----"


def jwt(rng: Random) -> str:
    """A signed token with a real header and payload."""

    def part(value: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode().rstrip("=")

    payload = {"sub": draw(rng, DIGITS, 10), "name": rng.choice(FIRST), "iat": rng.randrange(1_500_000_000, 1_800_000_000)}
    return f"{part({'alg': rng.choice(('HS256', 'RS256')), 'typ': 'JWT'})}.{part(payload)}.{draw(rng, ALNUM + '-_', 43)}"


def password(rng: Random) -> str:
    """What a person chooses under a policy: words, digits, a sign."""
    return rng.choice(
        (
            f"{rng.choice(LAST).capitalize()}{rng.randrange(10, 9999)}{rng.choice('!?#*.-')}",
            f"{rng.choice(FIRST)}{rng.choice('_-.+')}{mixed(rng, 8)}",
            mixed(rng, rng.randrange(10, 17), ALNUM + "!#%&*+-?@^~"),
        )
    )


def grouped(value: str, sizes: tuple[int, ...], separator: str) -> str:
    """A value cut in groups; what is left after them is the last group."""
    pieces, place = [], 0
    for size in sizes:
        pieces.append(value[place : place + size])
        place += size
    return separator.join([*pieces, value[place:]] if value[place:] else pieces)
