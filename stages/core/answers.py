"""How a model's answer is read as a label, the same in evaluate and compare."""

import re

# what is not looked at, in answer and label alike: spaces and quotes around, all but the first line, a closing full stop; and case
UNREAD = [r"^[\s\"'*`]+", r"(?s)\n.*", r"[\s\"'*`.,:;!]+$"]


def normal(answer: str) -> str:
    """The part of an answer or label that is compared."""
    for unread in UNREAD:
        answer = re.sub(unread, "", answer)
    return answer.lower()
