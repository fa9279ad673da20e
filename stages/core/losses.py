"""What tokens cost a loaded model. In: a model and tokenised rows. Out: the summed cross-entropy of each row's trained tokens, in nats."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stages.core.batches import IGNORED, PASS_TOKENS, TokenRow, bucket, collate
from stages.core.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens of one forward pass, padding included. On a GPU the logits of a pass in which every token is scored bound it: 8,192 tokens over a
# vocabulary of 150,000 take 5 GB in float32.
PASS_LIMIT = {"cpu": 1024, "cuda": 8192}


def summed_nats(model: Any, rows: Sequence[TokenRow], stage: str) -> list[float]:
    """The cross-entropy summed over each row's trained tokens, given all tokens before them in the row.

    Rows of like length share a forward pass, padded on the right, where under causal attention no token sees the padding.

    Args:
        model: a causal language model, with or without an adapter, in evaluation mode.
        rows: the rows, each with a trained token after its first.
        stage: the name shown with the progress.

    Returns:
        One sum a row, in the rows' order.
    """
    import torch

    device = model.device.type
    sums = [0.0] * len(rows)
    lengths = [len(row.input_ids) for row in rows]
    batches = bucket(range(len(rows)), lengths, PASS_LIMIT[device], PASS_TOKENS[device])
    with torch.inference_mode():
        for numbers in progress(batches, stage, total=len(rows), size=len):
            batch = collate([rows[number] for number in numbers], "bucket", pad=0)  # never seen, so any token will do
            logits = model(input_ids=batch.input_ids.to(device), logits_to_keep=batch.columns.to(device), use_cache=False).logits
            scored = batch.targets != IGNORED
            targets = batch.targets[scored].to(device)
            nats = torch.nn.functional.cross_entropy(logits[scored.to(device)].float(), targets, reduction="none").double().cpu()
            totals = torch.zeros(len(numbers), dtype=torch.float64).index_add_(0, scored.nonzero()[:, 0], nats)
            for number, total in zip(numbers, totals.tolist(), strict=True):
                sums[number] = total
    return sums


def answer_header(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that stand before an answer that has no prompt: BOS, where a rendered prompt begins with it, and the answer's header.

    The header is what the chat template adds to a question to ask for its answer, such as `<|im_start|>assistant` and a line break. A
    template that adds nothing leaves BOS alone, or the end-of-text token of a tokenizer without BOS, so that the first token of the answer
    has something before it.

    Args:
        tokenizer: with its chat template.

    Returns:
        At least one token.
    """
    question = [{"role": "user", "content": "x"}]
    bare = str(tokenizer.apply_chat_template(question, tokenize=False))
    asked = str(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True))
    header: list[int] = tokenizer(asked[len(bare) :] if asked.startswith(bare) else "", add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    begins: list[int] = tokenizer(asked, add_special_tokens=False)["input_ids"][:1]
    if bos is not None and begins == [bos] and header[:1] != [bos]:
        header = [bos, *header]
    return header or [tokenizer.eos_token_id if bos is None else bos]
