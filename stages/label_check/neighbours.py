"""The nearest rows of each row, approximately, in time nearly linear in the rows. In: texts. Out: unit vectors and a graph of distances.

Vectors are TF-IDF projected by a truncated SVD; the graph is searched in cells. docs/labels.md has its measured recall.
"""

from typing import TYPE_CHECKING, Any

from stages.core.cells import cells
from stages.label_check.classifier import TOKEN

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from scipy.sparse import csr_matrix

DIMENSIONS = 64
FITTED_TEXTS = 20_000  # the most texts that vocabulary and projection are fitted to
WORDS = 50_000


class Projection:
    """From texts to unit vectors; fitted to some texts, applied to any."""

    def __init__(self, texts: list[str], seed: int) -> None:
        """Fits vocabulary and projection.

        Args:
            texts: at least two, some of them with words.
            seed: of the randomised SVD.
        """
        import numpy as np
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer: Any = TfidfVectorizer(sublinear_tf=True, token_pattern=TOKEN, dtype=np.float32, max_features=WORDS)
        sparse = self._vectorizer.fit_transform(texts)
        self._svd: Any = TruncatedSVD(max(1, min(DIMENSIONS, *(size - 1 for size in sparse.shape))), random_state=seed).fit(sparse)

    def __call__(self, texts: list[str]) -> "npt.NDArray[np.float32]":
        """The texts' vectors: [texts, dimensions] float32, of length one, or zero for a text without known words."""
        import numpy as np
        from sklearn.preprocessing import normalize

        vectors: npt.NDArray[np.float32] = normalize(self._svd.transform(self._vectorizer.transform(texts))).astype(np.float32)
        return vectors


def graph(vectors: "npt.NDArray[np.float32]", neighbours: int, seed: int) -> "csr_matrix":
    """The nearest rows of each row by cosine distance.

    Args:
        vectors: [rows, dimensions] float32, of length one.
        neighbours: how many of each row, fewer than there are rows.
        seed: of the cells.

    Returns:
        [rows, rows] sparse, `neighbours` distances a row, the nearest first, without the row itself.
    """
    import numpy as np
    from scipy.sparse import csr_matrix

    rows = len(vectors)
    indices = np.empty((rows, neighbours), dtype=np.int32)
    distances = np.empty((rows, neighbours), dtype=np.float32)
    for members, candidates in cells(vectors, neighbours, seed):
        likeness = vectors[members] @ vectors[candidates].T
        likeness[members[:, None] == candidates[None, :]] = -2.0  # a row is no neighbour of its own
        best = np.argpartition(-likeness, neighbours - 1, axis=1)[:, :neighbours]
        found = 1.0 - np.take_along_axis(likeness, best, axis=1)
        found = np.maximum(np.where(found < 1e-6, 0.0, found), 0.0)  # equal vectors are at no distance, whatever their rounding
        order = np.lexsort((candidates[best], found), axis=1)
        indices[members] = np.take_along_axis(candidates[best], order, axis=1)
        distances[members] = np.take_along_axis(found, order, axis=1)
    starts = np.arange(0, rows * neighbours + 1, neighbours)
    return csr_matrix((distances.ravel().astype(np.float64), indices.ravel(), starts), shape=(rows, rows))
