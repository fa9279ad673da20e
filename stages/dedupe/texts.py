"""What of a row is compared: the words of its prompt, its answer, both together, and each message, every message read once.

In: a row. Out: word sequences; the words of joined texts are their words joined.
"""

import json
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from stages.core.records import Row
from stages.core.row_texts import answer_text, prompt_text
from stages.core.words import found_words, words


@dataclass(frozen=True, slots=True)
class Texts:
    """A row's word sequences, none of them empty but those of `held`.

    Attributes:
        prompt: of what it asks, without the system messages.
        whole: of prompt and answer; of a labelled row the prompt's, for a label must not make two texts more alike.
        answer: of what it teaches to answer; of a labelled row one word, the label.
        held: of each text that may hold an evaluation item.
        exact: equal for rows whose prompts and answers differ in case, layout and punctuation only, a 64-bit hash.
        labelled: whether it has a label.
    """

    prompt: list[str]
    whole: list[str]
    answer: list[str]
    held: list[list[str]]
    exact: int
    labelled: bool


def texts_of(row: Row) -> Texts:
    """Reads a row's texts."""
    said = [found_words(message["content"]) for message in row.messages]
    asked = len(said) - 1 if row.messages and row.messages[-1]["role"] == "assistant" else len(said)
    body = list(zip(row.messages[:asked], said[:asked], strict=True))
    prompt = [word for message, its in body if message["role"] != "system" for word in its] or found_words(prompt_text(row))
    key = [[message["role"], " ".join(its or words(message["content"]))] for message, its in zip(row.messages, said, strict=True)]
    if row.label is not None:
        answer = [row.label]
        whole = prompt
        held = [[word for _, its in body for word in its]]
        last = " ".join(words(row.label))
    else:
        chosen = [found_words(message["content"]) for message in row.chosen or ()]
        others = [found_words(message["content"]) for message in row.rejected or ()]
        learnt = chosen if row.chosen is not None else said[asked:]
        answer = [word for its in (*learnt, *others) for word in its]
        whole = [*prompt, *answer]
        together = [word for its in (*said[:asked], *learnt) for word in its]
        held = [*said, *chosen, *others, together]
        answer = answer or words(answer_text(row))
        whole = whole or words(f"{prompt_text(row)}\n{answer_text(row)}")
        last = " ".join(answer)
    exact = xxh3_64_intdigest(json.dumps([key, last, row.label]).encode())
    prompt = prompt or words(prompt_text(row))
    return Texts(prompt, prompt if row.label is not None else whole, answer, held, exact, row.label is not None)
