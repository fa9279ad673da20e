"""Strings that have little business in honest rows: invisible and look-alike characters, encoded runs, injected instructions, commands.

In: a row's prompt and answer. Out: the signals found, each with a strength in [0, 1] and evidence for a person to read.
"""

import re
import unicodedata
from dataclasses import dataclass

SHOWN = 60  # characters of a finding
LONG_WORD = 48  # characters without a space, which the shortest encoded run that counts has
ENCODED = 0.3  # a key's digest is an encoded run too: alone it makes no suspect of a known source


@dataclass(frozen=True, slots=True)
class Signal:
    """One reason to look at a row.

    Attributes:
        name: of the kind of reason.
        strength: in [0, 1]; 0.5 makes a row of a known source a suspect.
        evidence: a short sentence.
    """

    name: str
    strength: float
    evidence: str


# What Unicode's Default_Ignorable_Code_Point lists (DerivedCoreProperties.txt), and the blank U+2800; the joiners and variation selectors
# are left out where a script or an emoji stands before them, as clean leaves them in.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028\u2029\u2060-\u2065\u206a-\u206f\u2800\u3164"
    "\ufeff\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a]"
    "|(?<![\u0590-\u1dff\u2190-\U000dffff])[\u200c\u200d]"
    "|(?<![0-9#*\u00a9\u00ae\u0590-\u1dff\u200d\u2010-\U000dffff])[\ufe00-\ufe0f]"
    "|(?<![\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])[\U000e0100-\U000e01ef]"
)
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0000-\U000e007f]")
# Cyrillic, Greek, Armenian and Cherokee letters that look like Latin ones (Unicode's confusables.txt), and styled Latin letters
_LOOKALIKE = (
    "\u0391\u0392\u0395-\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf\u03f2"
    "\u0405\u0406\u0408\u0410\u0412\u0415\u041a\u041c-\u041e\u0420-\u0422\u0425\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0455\u0456"
    "\u0458\u04bb\u04cf\u0501\u051b\u051d\u0561\u0578\u057d\u0585\u13a0-\u13f4\uff21-\uff3a\uff41-\uff5a\U0001d400-\U0001d7cb"
)
_MIXED = re.compile(rf"\w*(?:[A-Za-z]{{2}}\w*[{_LOOKALIKE}]|[{_LOOKALIKE}]\w*[A-Za-z]{{2}})\w*")
# 64 letters, digits and signs of base64 with at least 8 digits among them, which paths and rules of dashes have not
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/])(?=(?:[A-Za-z+/]*[0-9]){8})(?=[^a-z]*[a-z])(?=[^A-Z]*[A-Z])[A-Za-z0-9+/]{64,}={0,2}")
_HEX = re.compile(r"(?<![0-9A-Fa-f])(?:0x)?[0-9A-Fa-f]{80,}|(?:\\x[0-9A-Fa-f]{2}){12,}")
_INJECTION = re.compile(
    r"\b(?:ignore|disregard|forget|override)\s+(?:all\s+|any\s+|the\s+|your\s+|of\s+|these\s+|my\s+){0,3}"
    r"(?:previous|prior|above|earlier|preceding|system|safety)\s+(?:instruction|prompt|message|rule|direction|guideline|polic)"
    r"|\byou are now\s+(?:DAN\b|in\s+developer\s+mode|unrestricted|jailbroken)"
    r"|\b(?:reveal|print|repeat|output)\s+(?:me\s+)?(?:your|the)\s+(?:system|hidden|initial)\s+(?:prompt|instructions?)"
    r"|\bdo not\s+(?:tell|inform|mention\s+(?:this|it)\s+to)\s+the user\b",
    re.IGNORECASE,
)
_TOOL_CALL = re.compile(
    r"</?(?:tool_call|tool_response|function_calls?|invoke)\b[^>]{0,40}>|<\|(?:im_start|im_end|system|python_tag|eot_id|start_header_id)\|>"
    r"|\[/?(?:INST|TOOL_CALLS|AVAILABLE_TOOLS)\]|\"(?:tool_calls|function_call)\"\s*:"
)
_COMMAND = re.compile(
    r"\b(?:curl|wget|iwr|Invoke-WebRequest)\b[^\n|;]{0,200}\|\s*(?:sudo\s+)?(?:ba|z|da)?sh\b|\brm -(?:rf|fr)\s+[/~]"
    r"|\bpowershell(?:\.exe)?\s+[^\n]{0,60}-e(?:nc|ncodedcommand)?\s+[A-Za-z0-9+/=]{16,}|\b(?:eval|exec)\s*\(\s*(?:base64|atob|__import__)"
    r"|\bnc (?:-\w+\s+)*-e\s|/dev/tcp/\d|\bbash -i\s+>&",
    re.IGNORECASE,
)
_BARE_ADDRESS = re.compile(r"\bhttps?://\d{1,3}(?:\.\d{1,3}){3}\b\S*|\bhttps?://\S+\.(?:exe|scr|ps1|bat|msi|sh|apk)\b", re.IGNORECASE)


def find(prompt: str, answer: str) -> list[Signal]:
    """The signals of one row.

    Args:
        prompt: what the row asks, all turns before the last answer.
        answer: what it teaches to answer.

    Returns:
        One signal a kind, with the strength of the worst place.
    """
    found = []
    for where, text in (("prompt", prompt), ("answer", answer)):
        if not text.isascii():
            found += _characters(where, text)
        lower = text.lower()
        for name, needles, pattern, strength in _PATTERNS:
            weight = strength.get(where)
            if weight and any(needle in lower for needle in needles) and (match := pattern.search(text)):
                found.append(Signal(name, weight, f"{where}: {_shown(match[0])}"))
        if max(map(len, text.split()), default=0) >= LONG_WORD and (match := _BASE64.search(text) or _HEX.search(text)):
            found.append(Signal("encoded", ENCODED, f"{where}: {_shown(match[0])}"))
    best: dict[str, Signal] = {}
    for signal in found:
        if signal.name not in best or signal.strength > best[signal.name].strength:
            best[signal.name] = signal
    return list(best.values())


def _characters(where: str, text: str) -> list[Signal]:
    """What can be wrong with the characters beyond ASCII."""
    found = []
    for pattern, strength in ((_DIRECTION, 0.9), (_INVISIBLE, 0.6)):
        if matches := pattern.findall(text):
            names = ", ".join(f"U+{ord(character):04X} {unicodedata.name(character, '')}".strip() for character in sorted(set(matches))[:3])
            found.append(Signal("invisible", strength, f"{where}: {len(matches)} of {names}"))
    if match := _MIXED.search(text):
        odd = ", ".join(
            f"{letter} is {unicodedata.name(letter, '')}" for letter in sorted(set(re.findall(f"[{_LOOKALIKE}]", match[0])))[:3]
        )
        found.append(Signal("homoglyph", 0.6, f"{where}: {_shown(match[0])}, where {odd}"))
    return found


def _shown(text: str) -> str:
    """A finding on one line, shortened."""
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


# name, strings in lower case of which a text must hold one (a pattern costs fifty times as much), the pattern, its strength by place.
# An example may have a bare address and an agent calls tools: alone they make no suspect of a known source.
_PATTERNS: list[tuple[str, tuple[str, ...], re.Pattern[str], dict[str, float]]] = [
    ("injection", ("ignore", "disregard", "forget", "override", "you are now", "reveal", "print", "repeat", "output", "do not"), _INJECTION,
     {"prompt": 0.6, "answer": 0.6}),
    ("tool_call", ("<", "[", "tool_calls", "function_call"), _TOOL_CALL, {"prompt": 0.5, "answer": 0.3}),
    ("command", ("|", "rm -", "powershell", "eval", "exec", "nc -", "/dev/tcp", "bash -i"), _COMMAND, {"answer": 0.5}),
    ("address", ("http://", "https://"), _BARE_ADDRESS, {"answer": 0.3}),
]  # fmt: skip
