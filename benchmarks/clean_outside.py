"""Clean's personal data against an outside generator, Faker, which is no dependency: recall by provider and locale, and false findings.

Run: pip install faker==40.63.0; python -m benchmarks.clean_outside. Out: figures that clean's own planted set cannot give.
"""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from stages.core.personal_data import find_personal_data
from stages.core.redaction import separate

VALUES = 200  # of each provider
CARRIERS = ("Please contact {} before Friday.", "Details: {}.", "| Jo | {} | yes |", '"contact": "{}"', "{}")
PHONES = ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL", "pt_BR", "pl_PL", "sv_SE", "en_IN", "ja_JP")
IBANS = ("de_DE", "en_GB", "fr_FR", "nl_NL", "es_ES", "it_IT", "pl_PL", "tr_TR")
CARDS = ("visa16", "visa13", "maestro", "mastercard", "amex", "discover", "jcb16", "diners")
IDS = (  # locale, provider, kind, word before it
    ("en_US", "ssn", "us_ssn", ""), ("en_GB", "ssn", "uk_nino", "NINO: "), ("fr_FR", "ssn", "fr_nir", ""),
    ("es_ES", "nif", "es_dni", "DNI: "), ("it_IT", "ssn", "it_codice_fiscale", ""), ("nl_NL", "ssn", "nl_bsn", "BSN: "),
    ("de_CH", "ssn", "ch_ahv", ""), ("pt_BR", "cpf", "br_cpf", "CPF: "),
)  # fmt: skip
LOOK_ALIKES = (
    "text", "date", "iso8601", "uuid4", "sha256", "md5", "isbn13", "ean13", "postcode", "license_plate", "hex_color", "mac_address",
    "ipv4_private", "user_agent", "file_path", "android_platform_token", "catch_phrase", "pyfloat", "random_number",
)  # fmt: skip


def recall(make: Callable[[], Any], kind: str, word: str) -> float:
    """The share of values that one finding of their kind covers wholly."""
    rng, hits = random.Random(0), 0
    for _ in range(VALUES):
        value, (head, tail) = str(make()), rng.choice(CARRIERS).split("{}")
        start = len(head) + len(word)
        findings = separate(find_personal_data(f"{head}{word}{value}{tail}"))
        hits += any(f.kind == kind and f.start <= start and start + len(value) <= f.end for f in findings)
    return hits / VALUES


def main() -> None:
    """Prints the table."""
    from faker import Faker

    def fake(locale: str) -> Any:
        generator = Faker(locale)
        generator.seed_instance(0)
        return generator

    for locale in PHONES:
        alone, behind = (recall(fake(locale).phone_number, "phone", word) for word in ("", "phone: "))
        print(f"phone {locale}: {alone:.3f}; after its word {behind:.3f}")
    for locale in IBANS:
        print(f"iban {locale}: {recall(fake(locale).iban, 'iban', ''):.3f}")
    for card in CARDS:
        generator = fake("en_US")
        print(f"card {card}: {recall(lambda g=generator, c=card: g.credit_card_number(card_type=c), 'card', ''):.3f}")
    print(f"ipv4: {recall(fake('en_US').ipv4_public, 'ip', ''):.3f}; ipv6: {recall(fake('en_US').ipv6, 'ip', ''):.3f}")
    print(f"email of free services: {recall(fake('en_US').free_email, 'email', ''):.3f}")
    for locale, provider, kind, word in IDS:
        print(f"{kind} {locale} {word}: {recall(getattr(fake(locale), provider), kind, word):.3f}")
    false: Counter[str] = Counter()
    texts = 0
    for locale in ("en_US", "de_DE", "fr_FR"):
        generator = fake(locale)
        for provider in LOOK_ALIKES:
            for _ in range(50):
                texts += 1
                false.update(finding.kind for finding in find_personal_data(str(getattr(generator, provider)())))
    print(f"false findings in {texts} look-alikes: {dict(false)}")


if __name__ == "__main__":
    main()
