"""Greedy continuations of a loaded model. In: prompts' token ids. Out: the tokens that follow each, and what the first was chosen from."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stages.core.losses import PASS_LIMIT
from stages.core.progress import progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def continued(
    model: Any, tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[list[int]], new_tokens: int, stage: str
) -> Iterator[tuple[int, list[int], "torch.Tensor"]]:
    """Lets a model go on after every prompt.

    Prompts of like length share a pass, padded on the left, where the attention mask hides the padding.

    Args:
        model: a causal language model, with or without an adapter, in evaluation mode.
        tokenizer: of this run.
        prompts: token ids each.
        new_tokens: of a continuation, at most.
        stage: the name shown with the progress.

    Yields:
        Of each prompt, in order of length: its number, the tokens up to the end-of-text token and without it, and the `[vocabulary]`
        logits of the first.
    """
    import torch
    from transformers import GenerationConfig

    end = tokenizer.eos_token_id
    settings = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, min_new_tokens=1, eos_token_id=end, pad_token_id=end)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for batch in progress(batches(order, prompts, PASS_LIMIT[model.device.type]), stage, total=len(prompts), unit="prompt", size=len):
        width = len(prompts[batch[-1]])
        ids = torch.tensor([[end] * (width - len(prompts[number])) + prompts[number] for number in batch])
        mask = torch.tensor([[0] * (width - len(prompts[number])) + [1] * len(prompts[number]) for number in batch])
        with torch.inference_mode():
            found = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=settings,
                output_logits=True,
                return_dict_in_generate=True,
            )
        for number, tokens, logits in zip(batch, found.sequences[:, width:].tolist(), found.logits[0], strict=True):
            yield number, tokens[: tokens.index(end)] if end in tokens else tokens, logits


def batches(order: Sequence[int], prompts: Sequence[list[int]], limit: int) -> list[list[int]]:
    """Prompts in order of length, in batches of at most `limit` tokens with their padding; a longer one has its own."""
    found: list[list[int]] = []
    for number in order:
        if not found or (len(found[-1]) + 1) * len(prompts[number]) > limit:
            found.append([])
        found[-1].append(number)
    return found
