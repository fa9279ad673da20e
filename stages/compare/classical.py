"""What needs no language model: a classifier of weighted words for labels, the nearest training row's answer for other rows.

In: training and test rows. Out: an answer for each test row. They tell whether a language model was needed at all.
"""

from stages.core.records import Row
from stages.core.retrieval import nearest_rows


def classical_answers(train: list[Row], test: list[Row]) -> dict[str, str] | None:
    """Fits TF-IDF and logistic regression on the rows the adapter was trained on, and answers the test rows.

    Args:
        train: labelled rows.
        test: rows to answer.

    Returns:
        The predicted label by row id, or None where there are fewer than two labels to learn.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if len({row.answer for row in train}) < 2:
        return None
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"),
        LogisticRegression(C=10.0, max_iter=1000, class_weight=None),
    )
    model.fit([row.text for row in train], [row.answer for row in train])
    return dict(zip((row.id for row in test), map(str, model.predict([row.text for row in test])), strict=True))


def copied_answers(train: list[Row], test: list[Row]) -> dict[str, str]:
    """The answer of each test row's nearest training row by its id, empty where none shares a word with it."""
    return {key: near[0].answer if near else "" for key, near in nearest_rows(test, train, 1).items()}
