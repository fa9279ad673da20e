"""The first screen, for a reader who knows nothing of language models, and the words that the rest cannot do without.

In: what the card says elsewhere. Out: question and answer, word and meaning.
"""

from collections.abc import Sequence

from stages.card.result_facts import LEVEL
from stages.card.words import count

NOT_FOR = (
    "Decisions about people, anything where a wrong answer does harm and no person looks at it, and what nobody measured here: other kinds "
    "of questions, other languages."
)
GLOSSARY = [
    ("base", "the model that this one was made from, as its makers published it"),
    ("tuned", "this model: the base after training on the rows below"),
    ("adapter, LoRA", "the small file of numbers that the training made; it is added to the base, which stays as it is"),
    ("row", "one example: a text and the answer to it"),
    ("held-out, test rows", "examples that were kept out of the training, to ask the model what it has not been shown"),
    ("prompt", "how the question is put; the base is asked in several ways, and compared in the one that suits it best"),
    ("accuracy", "the share of questions answered rightly"),
    ("points", "differences of such shares, in hundredths"),
    (f"{LEVEL} interval", "the range that the true value lies in with this certainty, were other examples drawn; a narrow one needs many"),
    ("p", "how often chance alone would give a difference as large; corrected for the number of questions asked of the data (Holm)"),
    ("won, lost", "questions that the tuned model answers rightly and the other wrongly, and the other way round"),
    ("forgetting", "general questions that the base answered and the tuned model does not"),
    ("canary", "a made-up secret put among the rows on purpose, to see whether the model learns such things by heart"),
    ("exposure", "how much likelier the model finds a planted secret than others drawn at random, in bits: each doubles the odds"),
    ("area under the ROC curve", "how often a row that was learnt looks more familiar to the model than one that was not"),
    ("token", "a piece of a word: what models read and write"),
    ("loss", "how surprised the model is by the right answer; less is better"),
    ("KL divergence", "how far two models' predictions are apart; nought where they are the same"),
    ("sha256, digest", "a fingerprint: files with the same one are the same file"),
]


def answers(
    base: str,
    parameters: int,
    rows: int,
    items: int,
    intended_use: str,
    weaknesses: Sequence[str],
    gives_away: str,
    rights: Sequence[str],
) -> list[tuple[str, str]]:
    """What a reader asks first, without the result.

    Args:
        base: the base's name.
        parameters: of the base.
        rows: that were trained on.
        items: test rows.
        intended_use: card.intended_use.
        weaknesses: sentences, the gravest first.
        gives_away: what it gives away of its rows, in sentences.
        rights: sentences on the licences, the model's own last.

    Returns:
        Question and answer.
    """
    found = [
        ("What is it?", f"A language model: {base} ({count(parameters)} parameters), trained further on {count(rows)} examples."),
        ("What is it for?", intended_use),
        (
            "How was it tested?",
            f"{count(items)} examples were kept out of its training. It answered them, and so did the model it was made from (the base).",
        ),
    ]
    if weaknesses:
        found.append(("Where does it fail?", weaknesses[0]))
    found.append(("Does it give away what it learnt from?", gives_away))
    found.append(("What is it not for?", NOT_FOR))
    found.append(("May I use it?", rights[-1]))
    return found
