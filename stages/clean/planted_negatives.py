"""What looks like a secret or a personal datum and is none: numbers of things, versions, digests, failed check digits, placeholders.

In: a random generator. Out: a text by name.
"""

from collections.abc import Callable
from random import Random

from stages.clean import planted_values as v
from stages.clean.planted_values import ALNUM, DIGITS, FIRST, HEX, LAST, UPPER, draw, filled


def _wrong(make: Callable[[Random], str], place: int = -1) -> Callable[[Random], str]:
    """A value whose digit or letter at a place is another: its check fails."""

    def broken(rng: Random) -> str:
        value = make(rng)
        alphabet = DIGITS if value[place].isdigit() else UPPER if value[place].isupper() else HEX
        other = rng.choice([c for c in alphabet if c.lower() != value[place].lower()])
        return value[:place] + other + (value[place + 1 :] if place != -1 else "")

    return broken


def _pattern(pattern: str) -> Callable[[Random], str]:
    return lambda rng: filled(rng, pattern)


def _digest(length: int, before: str = "") -> Callable[[Random], str]:
    return lambda rng: before + draw(rng, HEX, length)


NEGATIVES: dict[str, Callable[[Random], str]] = {
    "version of three": lambda rng: f"v{rng.randrange(20)}.{rng.randrange(99)}.{rng.randrange(999)}",
    "version of four": lambda rng: f"version {rng.randrange(20)}.{rng.randrange(99)}.{rng.randrange(999)}.{rng.randrange(99)}",
    "requirement": lambda rng: f"numpy>={rng.randrange(3)}.{rng.randrange(30)}.{rng.randrange(9)},<{rng.randrange(3, 9)}",
    "ISO date and time": lambda rng: (
        f"20{rng.randrange(10, 27)}-0{rng.randrange(1, 10)}-{rng.randrange(10, 29)}T12:{rng.randrange(10, 60)}:07.123456Z"
    ),
    "date with dots": lambda rng: f"{rng.randrange(10, 29)}.0{rng.randrange(1, 10)}.20{rng.randrange(10, 27)}",
    "years": lambda rng: f"Copyright (c) {rng.randrange(1980, 1999)}, {rng.randrange(2000, 2010)}-{rng.randrange(2011, 2027)} Acme",
    "commit": _digest(40, "commit "),
    "short commit": _digest(10, "fixed in "),
    "sha256": _digest(64, "sha256:"),
    "md5": lambda rng: f"MD5 (a.iso) = {draw(rng, HEX, 32)}",
    "integrity": lambda rng: f'integrity="sha384-{draw(rng, ALNUM + "+/", 64)}"',
    "uuid": lambda rng: v.grouped(draw(rng, HEX, 32), (8, 4, 4, 4, 12), "-"),
    "order number": _pattern("Order 1##-#######-#######"),
    "invoice": _pattern("invoice no. 20##-######"),
    "tracking number": lambda rng: f"1Z{draw(rng, ALNUM.upper(), 6)}{draw(rng, DIGITS, 10)}",
    "part number": _pattern("PN ###-####-A"),
    "ISBN": _pattern("ISBN 978-0-##-######-#"),
    "barcode": _pattern("EAN 40########P##"),
    "DOI": _pattern("doi:10.####/s#####-0##-#####-#"),
    "CAS number": _pattern("CAS ####-##-#"),
    "price": _pattern("$#,###.## or 1,###,### yen"),
    "coordinates": _pattern("5#.######, 1#.######"),
    "unix time": _pattern("at 17########"),
    "large number": _pattern("there are P############## stars"),
    "float": _pattern("0.####################"),
    "hexadecimal number": lambda rng: "0x" + draw(rng, HEX, 16),
    "colour": lambda rng: "#" + draw(rng, HEX, 6),
    "MAC address": lambda rng: ":".join(draw(rng, HEX, 2) for _ in range(6)),
    "private IP": lambda rng: rng.choice(
        (f"10.{rng.randrange(256)}.{rng.randrange(256)}.7", f"192.168.{rng.randrange(256)}.{rng.randrange(256)}")
    ),
    "example IP": lambda rng: f"203.0.113.{rng.randrange(256)}",
    "zip code": _pattern("Boston, MA 02###-####"),
    "DFARS clause": _pattern("DFARS 252.22#-70## and FAR 52.227-##"),
    "ticket": _pattern("ABC-####, JIRA-#####"),
    "room and floor": _pattern("room 4##, floor 1#, seat ##-##"),
    "phone beginning with 1": _pattern("1##-###-####"),
    "score": _pattern("won 21-1#, 21-1#, 15-1#"),
    "nine digits": _pattern("item P########"),
    "eleven digits": _pattern("ref P##########"),
    "card, failed check": lambda rng: v.grouped(_wrong(lambda r: v.luhn(filled(r, "4##############")))(rng), (4, 4, 4), " "),
    "IBAN, failed check": _wrong(lambda rng: v.iban("DE", filled(rng, "P" + "#" * 17))),
    "tax number, failed check": lambda rng: "Steuer-ID: " + _wrong(v.steuer_id)(rng),
    "French number, failed check": lambda rng: _wrong(v.nir)(rng),
    "DNI, wrong letter": lambda rng: "DNI: " + _wrong(v.dni)(rng),
    "codice fiscale, wrong letter": _wrong(v.codice_fiscale),
    "BSN, failed check": lambda rng: "BSN: " + _wrong(v.bsn)(rng),
    "AHV, failed check": lambda rng: v.grouped(_wrong(v.ahv)(rng), (3, 4, 4), "."),
    "CPF, failed check": lambda rng: v.grouped((value := _wrong(v.cpf)(rng))[:9], (3, 3), ".") + "-" + value[9:],
    "SSN of no area": lambda rng: f"{rng.choice(('000', '666', '9' + draw(rng, DIGITS, 2)))}-{filled(rng, '##-####')}",
    "Bitcoin, failed check": _wrong(v.base58_wallet, 12),
    "bech32, failed check": lambda rng: v.bech32_wallet(rng)[:-1] + "!",
    "example mail": lambda rng: f"{rng.choice(FIRST)}@example.{rng.choice(('com', 'org', 'net'))}",
    "git remote": lambda rng: f"git@github.com:{rng.choice(LAST)}/app.git",
    "image for high density": lambda rng: f"logo-{rng.randrange(9)}@2x.png",
    "decorator": lambda rng: f"@app.route('/{rng.choice(LAST)}')\ndef {rng.choice(FIRST)}(): ...",
    "scoped package": lambda rng: f"npm install @{rng.choice(LAST)}/core@{rng.randrange(9)}.{rng.randrange(9)}.{rng.randrange(9)}",
    "repository": lambda rng: f"https://github.com/{rng.choice(LAST)}/{rng.choice(FIRST)}-tools/blob/main/README.md",
    "page of a site": lambda rng: rng.choice(
        ("https://twitter.com/share?url=x", "https://www.facebook.com/sharer/sharer.php", "https://github.com/features")
    ),
    "password to come": lambda rng: rng.choice(
        ("password: see the wiki page", "password = your_password1", "PASSWORD=changeme123", "pwd: <your-password-1>")
    ),
    "password from code": lambda rng: rng.choice(
        ("password = getpass.getpass()", "token = os.environ['API_TOKEN1']", "api_key=config.api_key2", "secret = load_secret(path1)")
    ),
    "placeholder in URL": lambda rng: rng.choice(
        ("postgres://user:password@localhost/db", "https://user:${TOKEN1}@host/x", "redis://:$PASS@h/0")
    ),
    "token by name": lambda rng: rng.choice(
        ("max_tokens: 4096", "tokenizer = AutoTokenizer1", "next_token: 'identifier'", "csrf_token: {{ token1 }}")
    ),
    "documented key": lambda rng: rng.choice(
        ("AK" + "IAIOSFODNN7EXAMPLE", "gh" + "p_" + "x" * 36, "sk" + "-" + "x" * 40, "AIza" + "X" * 35)
    ),
    "public key": lambda rng: v.pem(rng, "PUBLIC KEY", 4),
    "certificate": lambda rng: v.pem(rng, "CERTIFICATE", 12),
    "SSH public key": lambda rng: f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5{draw(rng, ALNUM + '+/', 48)} {rng.choice(FIRST)}",
    "image in base64": lambda rng: f"data:image/png;base64,iVBORw0KGgo{draw(rng, ALNUM + '+/', 300)}=",
    "long identifier": lambda rng: f"sk-learn-contrib-{rng.choice(LAST)}-tools-for-{rng.choice(FIRST)}-and-{rng.choice(LAST)}",
    "licence key words": lambda rng: f"License key: GPL-{rng.randrange(2, 4)}.0-or-later",
    "primary key": lambda rng: f"PRIMARY KEY ({rng.choice(FIRST)}_id), key: {rng.choice(LAST)}_{rng.randrange(99)}",
    "bcrypt": lambda rng: f"password hash $2b$12${draw(rng, ALNUM + './', 53)}",
    "slug": lambda rng: (
        f"https://blog.acme.io/20{rng.randrange(10, 27)}/how-{rng.choice(FIRST)}-learned-to-code-in-{rng.randrange(10, 99)}-days"
    ),
    "asset with digest": lambda rng: f"/static/js/main.{draw(rng, HEX, 20)}.chunk.js",
}
