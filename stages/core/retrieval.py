"""The training rows nearest to a question: what retrieval gives without any training, as examples or as an answer to copy.

In: training and test rows. Out: for each test row the nearest rows with their answers, by cosine of the weighted words.
"""

import re

from stages.core.records import Row


def nearest_rows(test: list[Row], train: list[Row], count: int) -> dict[str, list[Row]]:
    """Finds each test row's nearest training rows that share a word with it.

    Never the row itself nor one of its near-duplicate cluster, which would hand the answer over. The similarity is the cosine of TF-IDF
    vectors of words and word pairs; of equally near rows the one with the smaller id comes first.

    Args:
        test: the rows asked about.
        train: the rows examples come from.
        count: how many are wanted for each test row.

    Returns:
        At most `count` rows by the test row's id, the nearest first.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows = sorted((row for row in train if re.search(r"\w", row.text)), key=lambda row: row.id)
    if not count or not rows:
        return {row.id: [] for row in test}
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    known = vectorizer.fit_transform([row.text for row in rows])
    asked = vectorizer.transform([row.text for row in test])
    found = {}
    for number, row in enumerate(test):
        similarity = np.round((known @ asked[number].T).toarray()[:, 0], 9)  # sums in another order differ in their last digits
        near: list[Row] = []
        for place in np.argsort(-similarity, kind="stable"):
            other = rows[place]
            if len(near) == count or similarity[place] <= 0:
                break
            if other.id != row.id and (row.cluster is None or other.cluster != row.cluster):
                near.append(other)
        found[row.id] = near
    return found
