"""Short greedy answers of a loaded model and their first token's distribution. In: prompts' token ids. Out: answers, log-probabilities."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stages.core.losses import PASS_LIMIT
from stages.core.progress import progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def answers(
    model: Any, tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[list[int]], new_tokens: int, stage: str
) -> tuple[list[str], "torch.Tensor"]:
    """Asks a model every prompt.

    Prompts of like length share a pass, padded on the left, where the attention mask hides the padding.

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
    from transformers import GenerationConfig

    end = tokenizer.eos_token_id
    settings = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, min_new_tokens=1, eos_token_id=end, pad_token_id=end)
    texts: dict[int, str] = {}
    first: dict[int, torch.Tensor] = {}
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
        written = tokenizer.batch_decode(found.sequences[:, width:], skip_special_tokens=True)
        for number, text, logits in zip(batch, written, found.logits[0], strict=True):
            texts[number], first[number] = text, torch.log_softmax(logits.float(), -1).cpu()
    return [texts[number] for number in range(len(prompts))], torch.stack([first[number] for number in range(len(prompts))])


def batches(order: Sequence[int], prompts: Sequence[list[int]], limit: int) -> list[list[int]]:
    """Prompts in order of length, in batches of at most `limit` tokens with their padding; a longer one has its own."""
    found: list[list[int]] = []
    for number in order:
        if not found or (len(found[-1]) + 1) * len(prompts[number]) > limit:
            found.append([])
        found[-1].append(number)
    return found


def divergence(log_p: "torch.Tensor", log_q: "torch.Tensor") -> list[float]:
    """KL(p || q) in nats of each pair of distributions, given `[pairs, vocabulary]` log-probabilities."""
    p, q = log_p.double(), log_q.double()
    nats: list[float] = (p.exp() * (p - q)).sum(-1).clamp(min=0).tolist()
    return nats
