"""The formats in which personal data is planted, by kind and name; what a detector must find, and what it is known to miss.

In: planted_values.py. Out: makers of a value with the words around it.
"""

from random import Random

from stages.clean import planted_values as v
from stages.clean.planted_values import FIRST, HOSTS, LAST, Maker, after, filled, plain

_IBANS = {  # the national part: # a digit, A a letter (ISO 13616 registry)
    "DE": "P" + "#" * 17,
    "GB": "AAAA" + "#" * 14,
    "FR": "#" * 10 + "A#A########" + "##",
    "NL": "AAAA" + "#" * 10,
    "ES": "#" * 20,
    "IT": "A" + "#" * 22,
    "BE": "#" * 12,
    "CH": "#" * 17,
    "PL": "#" * 24,
    "NO": "#" * 11,
    "AT": "#" * 16,
    "MT": "AAAA" + "#" * 23,
}
_CARDS = {
    "visa": ("4", 15),
    "mastercard": ("53", 15),
    "mastercard_2": ("22", 15),
    "amex": ("37", 14),
    "discover": ("6011", 15),
    "jcb": ("3530", 15),
}


def _name(rng: Random) -> str:
    first, last, number = rng.choice(FIRST), rng.choice(LAST), rng.randrange(1, 99)
    return rng.choice(
        (f"{first}.{last}", f"{first[0]}{last}{number}", f"{first}_{last}", f"{first}+{last}", f"{last}-{first}", f"{first}{number}")
    )


def _iban(rng: Random) -> str:
    country = rng.choice(sorted(_IBANS))
    return v.iban(country, filled(rng, _IBANS[country])[: len(_IBANS[country])])


def _card(name: str, sizes: tuple[int, ...] = (), separator: str = "") -> Maker:
    head, length = _CARDS[name]
    return plain(lambda rng: v.grouped(v.luhn(filled(rng, head.ljust(length, "#"))), sizes, separator))


def _phone(pattern: str, *words: str) -> Maker:
    return after(words or ("",), lambda rng: filled(rng, pattern))


def _ipv4(rng: Random) -> str:
    first = rng.choice([n for n in range(11, 200) if n not in (100, 127, 169, 172, 192, 198)])
    return f"{first}.{rng.randrange(256)}.{rng.randrange(10, 256)}.{rng.randrange(1, 255)}"


def _ipv6(rng: Random) -> str:
    return "2a0" + v.draw(rng, "1234", 1) + ":" + ":".join(f"{rng.randrange(1, 65536):x}" for _ in range(7))


def _handle(rng: Random) -> str:
    return rng.choice((f"{rng.choice(FIRST)}{rng.choice(LAST)}", f"{rng.choice(FIRST)}_{rng.randrange(1, 999)}", f"the{rng.choice(LAST)}"))


def _profile(site: str, end: str = "") -> Maker:
    return lambda rng: (site, _handle(rng).replace("_", "-" if "linkedin" in site or "github" in site else "_"), end)


_SSN_WORDS = ("SSN: ", "SSN ", "Social Security Number: ", "social security no. ", "my SSN is ")
_TAX_WORDS = ("Steuer-ID: ", "Steueridentifikationsnummer ", "IdNr. ", "tax ID: ", "Steuer-Identifikationsnummer: ", "TIN: ")
_DNI_WORDS = ("DNI: ", "NIE ", "NIF: ", "DNI ", "mi DNI es ", "documento nacional de identidad ")
_BSN_WORDS = ("BSN: ", "BSN ", "burgerservicenummer: ", "mijn BSN is ", "sofinummer ")
_NINO_WORDS = ("NINO: ", "National Insurance number: ", "NI number ", "national insurance no. ")

FOUND: dict[tuple[str, str], Maker] = {
    ("email", "plain"): plain(lambda rng: f"{_name(rng)}@{rng.choice(HOSTS)}"),
    ("email", "upper case"): plain(lambda rng: f"{_name(rng)}@{rng.choice(HOSTS)}".upper()),
    ("email", "letters outside ASCII"): plain(lambda rng: f"jürgen.{rng.choice(LAST)}@müller-{rng.choice(LAST)}.de"),
    ("email", "mailto"): lambda rng: ("mailto:", f"{_name(rng)}@{rng.choice(HOSTS)}", "?subject=hi"),
    ("email", "name in angle brackets"): lambda rng: (f"{rng.choice(FIRST).title()} <", f"{_name(rng)}@{rng.choice(HOSTS)}", ">"),
    ("phone", "+1 (AAA) EEE-NNNN"): _phone("+1 (N##) N##-####"),
    ("phone", "+1AAAEEENNNN"): _phone("+1N##N######"),
    ("phone", "(AAA) EEE-NNNN"): _phone("(N##) N##-####"),
    ("phone", "AAA-EEE-NNNN"): _phone("N##-N##-####"),
    ("phone", "AAA.EEE.NNNN"): _phone("N##.N##.####"),
    ("phone", "1-800-EEE-NNNN"): _phone("1-800-N##-####"),
    ("phone", "+44 20 NNNN NNNN"): _phone("+44 20 7### ####"),
    ("phone", "+49 (0)30 NNNNNNN"): _phone("+49 (0)30 P######"),
    ("phone", "+33 N NN NN NN NN"): _phone("+33 P ## ## ## ##"),
    ("phone", "0049 NNN NNNNNNN"): _phone("0049 P## P######"),
    ("phone", "French pairs"): _phone("0P ## ## ## ##"),
    ("phone", "British with a zero"): _phone("020 7### ####"),
    ("phone", "with an extension"): _phone("(N##) N##-#### x####"),
    ("phone", "area code in brackets"): _phone("(0P##) P#####"),
    ("phone", "area code and dash"): _phone("0P#-P######"),
    ("phone", "area code and blank"): _phone("0P# P######"),
    ("phone", "British mobile"): _phone("07### ######"),
    ("phone", "German after Tel."): _phone("030/P######", "Tel.: ", "Telefon ", "Fax: ", "Mobil: "),
    ("phone", "bare after a word"): _phone("N##N######", "phone: ", "call me at ", "Cell ", "WhatsApp: ", "text me on ", "my number is "),
    ("iban", "compact"): plain(_iban),
    ("iban", "groups of four"): plain(lambda rng: v.grouped(value := _iban(rng), (4,) * (len(value) // 4), " ")),
    ("card", "Visa, blanks"): _card("visa", (4, 4, 4, 4), " "),
    ("card", "Visa, dashes"): _card("visa", (4, 4, 4, 4), "-"),
    ("card", "Mastercard, compact"): _card("mastercard"),
    ("card", "Mastercard of 2017"): _card("mastercard_2", (4, 4, 4, 4), " "),
    ("card", "American Express, blanks"): _card("amex", (4, 6, 5), " "),
    ("card", "American Express, compact"): _card("amex"),
    ("card", "Discover"): _card("discover", (4, 4, 4, 4), " "),
    ("card", "JCB"): _card("jcb"),
    ("ip", "IPv4"): plain(_ipv4),
    ("ip", "IPv4 with port"): lambda rng: ("http://", _ipv4(rng), f":{rng.randrange(1024, 9999)}/x"),
    ("ip", "IPv6"): plain(_ipv6),
    ("us_ssn", "dashes"): plain(lambda rng: v.grouped(v.ssn(rng), (3, 2, 4), "-")),
    ("us_ssn", "blanks after its word"): after(_SSN_WORDS, lambda rng: v.grouped(v.ssn(rng), (3, 2, 4), " ")),
    ("us_ssn", "compact after its word"): after(_SSN_WORDS, v.ssn),
    ("uk_nino", "pairs"): plain(lambda rng: v.grouped(v.nino(rng), (2, 2, 2, 2), " ")),
    ("uk_nino", "compact after its word"): after(_NINO_WORDS, v.nino),
    ("de_tax_id", "compact after its word"): after(_TAX_WORDS, v.steuer_id),
    ("de_tax_id", "blanks after its word"): after(_TAX_WORDS, lambda rng: v.grouped(v.steuer_id(rng), (2, 3, 3), " ")),
    ("fr_nir", "blanks"): plain(lambda rng: v.grouped(v.nir(rng), (1, 2, 2, 2, 3, 3), " ")),
    ("fr_nir", "compact"): plain(v.nir),
    ("es_dni", "after its word"): after(_DNI_WORDS, v.dni),
    ("es_dni", "dash after its word"): after(_DNI_WORDS, lambda rng: f"{(value := v.dni(rng))[:-1]}-{value[-1]}"),
    ("it_codice_fiscale", "compact"): plain(v.codice_fiscale),
    ("it_codice_fiscale", "blanks after its word"): after(
        ("codice fiscale ", "Codice Fiscale: ", "C.F. "), lambda rng: v.grouped(v.codice_fiscale(rng), (3, 3, 5), " ")
    ),
    ("nl_bsn", "compact after its word"): after(_BSN_WORDS, v.bsn),
    ("nl_bsn", "dots after its word"): after(_BSN_WORDS, lambda rng: v.grouped(v.bsn(rng), (4, 2), ".")),
    ("ch_ahv", "dots"): plain(lambda rng: v.grouped(v.ahv(rng), (3, 4, 4), ".")),
    ("ch_ahv", "compact"): plain(v.ahv),
    ("br_cpf", "dots and dash"): plain(lambda rng: v.grouped((value := v.cpf(rng))[:9], (3, 3), ".") + "-" + value[9:]),
    ("br_cpf", "compact after its word"): after(("CPF: ", "CPF ", "meu CPF: "), v.cpf),
    ("wallet", "Bitcoin base58"): plain(v.base58_wallet),
    ("wallet", "Bitcoin bech32"): plain(v.bech32_wallet),
    ("wallet", "Ethereum"): plain(v.ethereum_wallet),
    ("account", "twitter.com"): _profile("https://twitter.com/"),
    ("account", "x.com with @"): _profile("https://x.com/@"),
    ("account", "instagram"): _profile("https://www.instagram.com/", "/"),
    ("account", "github.com"): _profile("https://github.com/"),
    ("account", "linkedin.com/in"): _profile("https://www.linkedin.com/in/"),
    ("account", "t.me"): _profile("t.me/"),
    ("account", "mastodon"): _profile("https://mastodon.social/@"),
    ("account", "youtube.com/@"): _profile("https://www.youtube.com/@"),
    ("account", "reddit.com/u"): _profile("https://reddit.com/u/"),
}

BEYOND: dict[tuple[str, str], Maker] = {
    ("email", "in words: at, dot"): plain(lambda rng: f"{rng.choice(FIRST)} at {rng.choice(LAST)} dot com"),
    ("email", "[at] and (dot)"): plain(lambda rng: f"{_name(rng)}[at]{rng.choice(LAST)}(dot)org"),
    ("phone", "AAA EEE NNNN, no word"): _phone("N## N## ####"),
    ("phone", "ten digits, no word"): _phone("N##N######"),
    ("phone", "French mobile, no groups"): _phone("06########"),
    ("phone", "Indian, no word"): _phone("98### #####"),
    ("iban", "lower case"): plain(lambda rng: _iban(rng).lower()),
    ("iban", "dashes"): plain(lambda rng: v.grouped(value := _iban(rng), (4,) * (len(value) // 4), "-")),
    ("card", "dots"): _card("visa", (4, 4, 4, 4), "."),
    ("us_ssn", "compact, no word"): plain(v.ssn),
    ("uk_nino", "compact, no word"): plain(v.nino),
    ("de_tax_id", "no word"): plain(v.steuer_id),
    ("es_dni", "no word"): plain(v.dni),
    ("nl_bsn", "no word"): plain(v.bsn),
    ("account", "@handle alone"): lambda rng: ("@", _handle(rng), ""),
    ("person", "full name"): plain(lambda rng: f"{rng.choice(FIRST)} {rng.choice(LAST)}".title()),
    ("postal_address", "street and town"): plain(
        lambda rng: f"{rng.randrange(1, 99)} {rng.choice(LAST).title()} Street, {filled(rng, '#####')} Springfield"
    ),
    ("birth_date", "after its word"): after(
        ("born on ", "DOB: "), lambda rng: f"{rng.randrange(1, 29)}/{rng.randrange(1, 13)}/{rng.randrange(1930, 2010)}"
    ),
}
