"""Vectors of length one from a sentence-embedding model of the user's. In: texts. Out: [texts, dimensions] float16.

A text longer than the model's window is read in windows side by side: with mean pooling its vector is that of all its tokens, with cls
the mean of its windows'.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stages.local_models.folders import batches, inputs, loaded, pad_of, window_tokens, windows

if TYPE_CHECKING:
    from stages.core.params import Embedding

KEY = "local_models.embedding"


class EmbeddingModel:
    """A model that gives a text a vector.

    Attributes:
        dimensions: of a vector.
        cut: texts so far that were longer than a window.
    """

    dimensions: int
    cut: int

    def __init__(self, params: "Embedding", device: str) -> None:
        """Loads it.

        Args:
            params: the section `local_models.embedding`.
            device: cpu or cuda.
        """
        self._model, self._tokenizer = loaded(KEY, params.folder, "AutoModel", device)
        self._tokens = window_tokens(self._model, self._tokenizer)
        self._mean = params.pooling == "mean"
        self._device = device
        self.dimensions = int(self._model.config.hidden_size)
        self.cut = 0

    def vectors(self, texts: list[str]) -> npt.NDArray[np.float16]:
        """The texts' vectors, [texts, dimensions] float16; zero for a text without tokens of its own."""
        import torch

        cut = windows(self._tokenizer, texts, self._tokens, 0)
        flat = [(owner, encoding) for owner, its in enumerate(cut) for encoding in its if texts[owner].strip()]
        self.cut += sum(len(its) > 1 for its in cut)
        sums = np.zeros((len(texts), self.dimensions))
        for batch in batches([len(encoding.ids) for _, encoding in flat]):
            given: Any = inputs([flat[number][1] for number in batch], pad_of(self._tokenizer), self._device)
            with torch.inference_mode():
                hidden = self._model(**given).last_hidden_state.float()
                pooled = (hidden * given["attention_mask"][:, :, None]).sum(1) if self._mean else hidden[:, 0]
            np.add.at(sums, [flat[number][0] for number in batch], pooled.double().cpu().numpy())
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return (sums / np.maximum(lengths, 1e-12)).astype(np.float16)
