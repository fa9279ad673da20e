"""Repairs of Unicode that change how a text is encoded and never what it says, each counted by name.

In: a text. Out: the repaired text, a fixed point of `repair`. Fenced code loses its invisible characters and nothing else: mojibake in
code may be a test's own data.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable

import ftfy

# Only what undoes a wrong decoding. Quotes, ligatures, widths and HTML entities are an author's choice, and code depends on them.
_MOJIBAKE = ftfy.TextFixerConfig(
    unescape_html=False,
    remove_terminal_escapes=False,
    fix_encoding=True,
    restore_byte_a0=True,
    replace_lossy_sequences=False,
    decode_inconsistent_utf8=True,
    fix_c1_controls=True,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    fix_surrogates=True,
    remove_control_chars=False,
    normalization=None,
    explain=False,
)
_FENCE = re.compile(r"(^[ \t]*(`{3,}|~{3,}).*?(?:^[ \t]*\2[ \t]*$|\Z))", re.MULTILINE | re.DOTALL)
_LINE_END = re.compile(r"\r\n?|[\u2028\u2029]")
# tab, line feed and form feed are text; the rest of C0, C1 and terminal colours are not
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")
# Zero-width space, word joiner, byte order mark, soft hyphen, bidi marks and overrides, and tags outside a flag; the joiners U+200C
# and U+200D stay where scripts and emoji need them, that is after a character that is neither Latin, Greek nor punctuation.
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
    "|(?<![\u0590-\u1dff\u2190-\U000dffff])[\u200c\u200d]"
    "|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0000-\U000e007f]+"
)

MAX_PASSES = 8  # one repair can uncover another (an escaped byte order mark, a doubly encoded letter); three passes are the most seen


def repair(text: str, counts: Counter[str] | None = None) -> str:
    """The text with its encoding mended.

    Args:
        text: any text.
        counts: gets one more under `line_ends`, `mojibake`, `control`, `invisible` or `normal_form` for each step that changed something.

    Returns:
        The repaired text; repairing it again changes nothing.
    """
    if text.isascii() and not _LINE_END.search(text) and not _CONTROL.search(text):
        return text
    for _ in range(MAX_PASSES):
        before = text
        text = _once(text, counts)
        if text == before:
            break
    return text


def _once(text: str, counts: Counter[str] | None) -> str:
    for name, step, in_code in _STEPS:
        changed = step(text) if in_code else _outside_fences(text, step)
        if counts is not None and changed != text:
            counts[name] += 1
        text = changed
    return text


def _outside_fences(text: str, step: Callable[[str], str]) -> str:
    """Applies a step to what is not inside a Markdown code fence."""
    pieces, end = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [step(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, step(text[end:])])


def _undo_mojibake(text: str) -> str:
    """Decodes what was decoded wrongly, unless the way back ends in U+FFFD, which says less than what stood there."""
    if text.isascii():
        return text
    fixed = ftfy.fix_text(text, _MOJIBAKE)
    return text if fixed.count("\ufffd") > text.count("\ufffd") else fixed


_STEPS: tuple[tuple[str, Callable[[str], str], bool], ...] = (
    ("line_ends", lambda text: _LINE_END.sub("\n", text), True),
    ("mojibake", _undo_mojibake, False),
    ("control", lambda text: _CONTROL.sub("", text), True),
    ("invisible", lambda text: _INVISIBLE.sub("", text), True),
    ("normal_form", lambda text: unicodedata.normalize("NFC", text), False),
)
