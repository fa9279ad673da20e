"""The classical baseline: words and word pairs, weighted, and a logistic regression. It tells whether a language model was needed at all.

In: labelled training and test rows. Out: a predicted label for each test row.
"""

from stages.core.records import Row


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
