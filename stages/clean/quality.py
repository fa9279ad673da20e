"""What the quality rules measure, each a number of which a person can judge the threshold: larger is worse, 0 is nothing to object to.

In: texts. Out: numbers. Made for instruction data, where three words can be a perfect answer: no measure asks for length or for prose.
"""

import re

from ftfy.badness import badness

from stages.core.refusals import opens_with_refusal

REPEATED_WORDS = 5  # words of a sequence whose second occurrence is repetition (Rae et al. 2021, Gopher, table A1)
MIN_CUT_CHARACTERS = 100  # shorter answers may end as they like: titles, names, list items
FENCE = re.compile(r"^[ \t>]*(`{3,}|~{3,})([^`\n]*)$", re.MULTILINE)
_CODE = re.compile(r"^[ \t>]*(`{3,}|~{3,})[^`\n]*$.*?(?:^[ \t>]*\1[`~]*[ \t]*$|\Z)|`[^`\n]+`", re.MULTILINE | re.DOTALL)

_BOILERPLATE = re.compile(  # of a folded text
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b|\bi hope (?:this|that|it) helps|\bfeel free to (?:ask|reach)"
    r"|\b(?:please )?(?:let me know|don'?t hesitate)\b[^.!?\n]{0,40}\b(?:if|to)\b|\bis there anything else i can\b|\bhappy to help\b"
    r"|\bthank(?:s| you) for (?:your question|asking|reaching out|contacting|visiting)|\b(?:that'?s a |what a )?great question"
    r"|^(?:sure|certainly|of course|absolutely)\W+(?:here|i'?d|i can|let me)\b|\bclick (?:here|on the link|the button)"
    r"|\bsubscribe (?:to|now)|\bsign up (?:for|to)\b|\bread more\b|\bcontinue reading"
    r"|\bshare (?:this (?:post|article|page)|on (?:facebook|twitter))|\blorem ipsum"
    r"|\b(?:we|this (?:web)?site) uses? cookies|\benable javascript|\byour browser\b|\bpage not found|\ball rights reserved"
    r"|\bprivacy policy\b|\bterms of (?:use|service)\b|\blog ?in to (?:your|continue|view)|\badvertisement\b|\bposted (?:by|on)\b",
)
_BOILERPLATE_HINTS = (  # the expression is tried where one of these stands in the folded text
    "as an ai", "as an artificial", "language model", "i hope", "feel free", "let me know", "hesitate", "anything else", "happy to",
    "thank", "great question", "sure", "certainly", "of course", "absolutely", "click", "subscribe", "sign up", "read more",
    "continue reading", "share ", "lorem", "cookies", "javascript", "your browser", "not found", "rights reserved", "privacy",
    "terms of", "login to", "log in to", "advertisement", "posted",
)  # fmt: skip
_SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]*")
_MARKUP = re.compile(
    r"</?(?:p|br|div|span|a|b|i|u|em|strong|ul|ol|li|table|t[rdh]|tbody|thead|h[1-6]|img|font|center|su[pb]|ref|blockquote|script|style|iframe"
    r"|hr|nowiki|small|big|html|body|head|meta|link)\b[^<>]{0,300}>"
    r"|&(?:nbsp|amp|lt|gt|quot|apos|[mn]dash|hellip|[lr][sd]quo|copy|bull|#\d{1,6}|#x[0-9a-f]{1,5});"
    r"|\[\[[^\[\]\n]{1,200}\]\]|\{\{[^{}]{1,300}\}\}|'''+|^={2,5}[^=\n]{1,80}={2,5}[ \t]*$|^\{\||^\|\}|\[(?:edit|citation needed)\]"
    r"|\[/?(?:b|i|u|url|img|quote|code)(?:=[^\]\n]{0,200})?\]",
    re.IGNORECASE | re.MULTILINE,
)
_ASKS_FOR_MARKUP = re.compile(
    r"\b(?:x?html5?|xml|svg|css|jsx?|javascript|react|vue|php|markup|tags?|wiki\w*|bbcode|jinja2?|templates?"
    r"|web ?(?:page|site)s?|latex|elements?)\b",
    re.IGNORECASE,
)
_ENDED = re.compile(r"[.!?…。！？।؟\"'”’»)\]}>*_`|~\d%€$£°^/\\=+#]$|[^\x00-\u024f]$")
_OPEN_END = re.compile(
    r"(?:[,:;(\[{–—-]|\b(?:an?|the|of|and|or|but|to|with|in|for|that|which|who|as|by|from|at|on|into|is|are|was|were|be|will|can|has|have|its"
    r"|their|your|our|this|these|if|because|than|such|between|through|about|when|where|while))$",
    re.IGNORECASE,
)
_STOP = re.compile(r"[.!?][\"')]?\s")


def repetition(text: str) -> float:
    """The share of a text's words that stand in a five-word sequence which the text has had before (Rae et al. 2021).

    Args:
        text: any text.

    Returns:
        0 for a text without repetition, and for one of fewer than six words; near 1 for one sentence again and again.
    """
    words = text.casefold().split()
    seen: set[tuple[str, ...]] = set()
    repeated = bytearray(len(words))
    for start in range(len(words) - REPEATED_WORDS + 1):
        gram = tuple(words[start : start + REPEATED_WORDS])
        if gram in seen:
            repeated[start : start + REPEATED_WORDS] = b"\x01" * REPEATED_WORDS
        seen.add(gram)
    return sum(repeated) / len(words) if words else 0.0


def truncation(answer: str) -> float:
    """How surely an answer breaks off in the middle.

    Args:
        answer: any text.

    Returns:
        1 where the last word or mark calls for more (`and`, `the`, a comma, an opening bracket); 0.5 where sentences end with stops and
        the last one, of eight words or more, does not; else 0, and always for an answer shorter than MIN_CUT_CHARACTERS.
    """
    text = answer.rstrip()
    if len(text) < MIN_CUT_CHARACTERS:
        return 0.0
    last = text[text.rfind("\n") + 1 :]
    if _OPEN_END.search(last[-20:]):
        return 1.0
    if _ENDED.search(text[-1:]):
        return 0.0
    return 0.5 if len(last.split()) >= 8 and _STOP.search(text) else 0.0


def boilerplate(answers: list[str]) -> float:
    """The share of the answers' characters in sentences that any answer or web page could hold: courtesies, cookies, `read more`.

    Args:
        answers: all of a row, so that a conversation may end with a courtesy. Refusals are another rule's and left out.

    Returns:
        0 to 1.
    """
    answers = [answer for answer in answers if not opens_with_refusal(answer)]
    whole = "\n".join(answers).casefold()
    if not any(hint in whole for hint in _BOILERPLATE_HINTS) or not _BOILERPLATE.search(whole):
        return 0.0
    sentences = _SENTENCE.findall(whole)
    return sum(len(sentence) for sentence in sentences if _BOILERPLATE.search(sentence.strip())) / len(whole)


def mojibake(text: str) -> float:
    """Marks of a wrong decoding that repair could not undo, outside code: U+FFFD and ftfy's bad sequences, for each word.

    Args:
        text: repaired.

    Returns:
        0 for a sound text.
    """
    if text.isascii():
        return 0.0
    prose = without_code(text)
    return (prose.count("\ufffd") + badness(prose)) / max(1, len(prose.split()))


def markup(prompt: str, answer: str) -> float:
    """Tags, entities, wiki and forum markup in an answer outside code, for each word; 0 where the prompt asks for markup or holds some.

    Args:
        prompt: what was asked.
        answer: what was answered.

    Returns:
        Marks for each word.
    """
    if not _MARKUP.search(answer) or _ASKS_FOR_MARKUP.search(prompt) or _MARKUP.search(prompt):
        return 0.0
    prose = without_code(answer)
    return len(_MARKUP.findall(prose)) / max(1, len(prose.split()))


def unclosed_fences(answer: str) -> int:
    """How many Markdown code fences do not close: 1 where one is open at the end, else 0 (CommonMark 0.31, section 4.5).

    Args:
        answer: any text.

    Returns:
        0 or 1.
    """
    opened = ""
    for fence, rest in FENCE.findall(answer) if "```" in answer or "~~~" in answer else ():
        if not opened:
            opened = fence
        elif fence[0] == opened[0] and len(fence) >= len(opened) and not rest.strip():
            opened = ""
    return int(bool(opened))


def length_ratio(prompt: str, answer: str) -> float:
    """Characters of an answer for each of its prompt."""
    return len(answer.strip()) / max(1, len(prompt.strip()))


def without_code(text: str) -> str:
    """A text without its fenced blocks and inline code."""
    return _CODE.sub(" ", text) if "`" in text or "~~~" in text else text
