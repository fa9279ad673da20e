"""Short greedy answers of a loaded model and their first token's distribution. In: prompts' token ids. Out: answers, log-probabilities."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stages.core.greedy import continued

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def answers(
    model: Any, tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[list[int]], new_tokens: int, stage: str
) -> tuple[list[str], "torch.Tensor"]:
    """Asks a model every prompt.

    Args:
        model: a causal language model, with or without an adapter, in evaluation mode.
        tokenizer: of this run.
        prompts: token ids each.
        new_tokens: of an answer, at most.
        stage: the name shown with the progress.

    Returns:
        The answers without special tokens, and `[prompts, vocabulary] float32` log-probabilities of their first tokens, on the CPU; both
        in the prompts' order.
    """
    import torch

    tokens: dict[int, list[int]] = {}
    first: dict[int, torch.Tensor] = {}
    for number, ids, logits in continued(model, tokenizer, prompts, new_tokens, stage):
        tokens[number], first[number] = ids, torch.log_softmax(logits.float(), -1).cpu()
    texts = tokenizer.batch_decode([tokens[number] for number in range(len(prompts))], skip_special_tokens=True)
    return texts, torch.stack([first[number] for number in range(len(prompts))])


def divergence(log_p: "torch.Tensor", log_q: "torch.Tensor") -> list[float]:
    """KL(p || q) in nats of each pair of distributions, given `[pairs, vocabulary]` log-probabilities."""
    p, q = log_p.double(), log_q.double()
    nats: list[float] = (p.exp() * (p - q)).sum(-1).clamp(min=0).tolist()
    return nats
