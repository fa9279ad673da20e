"""Token ids as the text a person reads, one piece a token. In: a tokenizer of the `tokenizers` library. Out: strings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def token_texts(tokenizer: "Tokenizer", ids: Sequence[int]) -> list[str]:
    """What each token adds to the text, special tokens included.

    Args:
        tokenizer: the fast tokenizer (`PreTrainedTokenizerFast.backend_tokenizer`, or `Tokenizer.from_file`).
        ids: the tokens.

    Returns:
        As many strings as ids; a character that several tokens make up stands with the last of them, the others are empty.
    """
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=False)
    return [stream.step(tokenizer, token) or "" for token in ids]
