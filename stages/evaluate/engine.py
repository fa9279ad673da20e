"""lm-eval's Hugging Face model with shared work done once: the same answers and log-likelihoods from fewer tokens.

In: lm-eval's requests. Out: what `HFLM` returns for them. A prefix that several requests share runs through the model once, its
keys and values are repeated, and the output layer, a fifth of a small model's work, sees only the positions that are scored.
"""

import contextlib
import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text
from transformers import DynamicCache

from stages.core.progress import progress

LOGITS = 2**27  # the most float32 numbers that one pass's logits may hold: 512 MiB, and as much again for their softmax

Ids = list[int]


@dataclass(frozen=True)
class Group:
    """Requests with one context, such as a question's choices.

    Attributes:
        shared: the tokens that all their inputs begin with.
        tails: what follows in each request's input, often nothing.
        context: how many tokens of an input are not scored; the first scored token is predicted at `context` - 1.
        targets: each request's tokens to score.
        places: each request's index in the caller's list.
    """

    shared: Ids
    tails: list[Ids]
    context: int
    targets: list[Ids]
    places: list[int]


class Engine(HFLM):
    """`HFLM` around a loaded model, equal to it within rounding."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, stage: str, rendered: bool) -> None:
        """Wraps a model.

        Args:
            model: a loaded causal language model, with or without an adapter.
            tokenizer: its tokenizer.
            batch_size: rows for one forward pass, at most.
            stage: the name shown with the progress.
            rendered: whether prompts come from a chat template, which writes every special token itself, or are plain text.
        """
        super().__init__(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, add_bos_token=False if rendered else None
        )
        self.stage = stage
        self.rendered = rendered
        self.terminal = sys.stderr

    def shown(self, batches: list[Any]) -> Iterator[Any]:
        """Passes batches on with the stage's progress bar, on the terminal that lm-eval's own bars are kept from."""
        bars = progress(batches, self.stage, unit="batch")
        while True:
            with contextlib.redirect_stderr(self.terminal):
                batch = next(bars, None)
            if batch is None:
                return
            yield batch

    def _encode_pair(self, context: str, continuation: str) -> tuple[Ids, Ids]:
        """The tokens of the context and of the continuation; a rendered prompt is never cut before its last line break."""
        if not self.rendered:
            return super()._encode_pair(context, continuation)
        whole, alone = self.tok_encode(context + continuation), self.tok_encode(context)
        kept = common_prefix([whole, alone])
        return whole[:kept], whole[kept:]

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Ids, Ids]], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether it is the greedy one.

        Args:
            requests: key, context tokens, continuation tokens.
            disable_tqdm: unused, there is one progress bar a stage.
            override_bs: unused, batches are filled by `batches`.

        Returns:
            One pair a request, in the requests' order.
        """
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        groups = grouped(requests, self.max_length)
        for batch in self.shown(batches(groups, int(self.batch_size), LOGITS // self.model.config.vocab_size)):
            self._score(batch, answers)
        return answers

    def _score(self, groups: list[Group], answers: list[tuple[float, bool]]) -> None:
        """Runs the shared tokens of some groups, then their tails on the repeated cache, and writes each request's answer."""
        kept = max(len(group.shared) - group.context + 1 for group in groups)
        cache = DynamicCache(config=self.model.config) if any(any(group.tails) for group in groups) else None
        mask = left_mask([len(group.shared) for group in groups], self.device)
        ids = left_padded([group.shared for group in groups], self.eot_token_id, self.device)
        head = self._forward(ids, mask, cache, kept)  # [group, kept, vocabulary], the last column is the last shared token
        tails = None
        if cache is not None:
            owners = [index for index, group in enumerate(groups) for tail in group.tails if tail]
            sequences = [tail for group in groups for tail in group.tails if tail]
            cache.batch_select_indices(torch.tensor(owners, device=self.device))
            tail_ids = right_padded(sequences, self.eot_token_id, self.device)
            tails = self._forward(tail_ids, torch.cat([mask[owners], torch.ones_like(tail_ids)], dim=1), cache, tail_ids.shape[1])
        row = 0
        for index, group in enumerate(groups):
            for tail, target, place in zip(group.tails, group.targets, group.places, strict=True):
                scores = head[index, kept - (len(group.shared) - group.context + 1) :]
                if tail:
                    assert tails is not None
                    scores = torch.cat([scores, tails[row, : len(tail)]])
                    row += 1
                wanted = torch.tensor(target, device=self.device)
                logs = torch.log_softmax(scores.float(), dim=-1).gather(1, wanted[:, None])
                answers[place] = (float(logs.sum()), bool((scores.argmax(dim=-1) == wanted).all()))

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache | None, kept: int) -> torch.Tensor:
        """Logits of the last `kept` positions; `mask` covers the cached tokens too and gives each token its position."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=kept,
        )
        return output.logits

    @torch.inference_mode()
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, each up to its first stop string, its end token or its limit of new tokens.

        Args:
            requests: prompt and generation settings each, the settings alike in all.
            disable_tqdm: unused, there is one progress bar a stage.

        Returns:
            One answer a request, in the requests' order.
        """
        settings = requests[0].args[1]
        stops, limit = [*settings["until"], self.tok_decode([self.eot_token_id], skip_special_tokens=False)], int(settings["max_gen_toks"])
        prompts = [self.tok_encode(request.args[0])[-(self.max_length - limit) :] for request in requests]
        shared = min(common_prefix(prompts), min(len(prompt) for prompt in prompts) - 1)
        prefix = DynamicCache(config=self.model.config)
        if shared:
            beginning = torch.tensor([prompts[0][:shared]], device=self.device)
            self._forward(beginning, torch.ones_like(beginning), prefix, 1)
        rests = [prompt[shared:] for prompt in prompts]
        order = sorted(range(len(rests)), key=lambda index: -len(rests[index]))
        size = int(self.batch_size)
        answers = [""] * len(requests)
        for batch in self.shown([order[start : start + size] for start in range(0, len(order), size)]):
            cache = copy.deepcopy(prefix)
            cache.batch_repeat_interleave(len(batch))
            for index, ids in zip(batch, self._continue([rests[index] for index in batch], shared, cache, stops, limit), strict=True):
                answers[index] = postprocess_generated_text(self.tok_decode(ids), stops, None)
        return answers

    def _continue(self, rests: list[Ids], shared: int, cache: DynamicCache, stops: list[str], limit: int) -> list[Ids]:
        """Greedy tokens after prompts whose first `shared` tokens are in the cache."""
        rows = len(rests)
        mask = torch.cat(
            [torch.ones(rows, shared, dtype=torch.long, device=self.device), left_mask([len(r) for r in rests], self.device)], dim=1
        )
        ids = left_padded(rests, self.eot_token_id, self.device)
        written: list[Ids] = [[] for _ in rests]
        open_rows = set(range(rows))
        for _ in range(limit):
            best = self._forward(ids, mask, cache, 1)[:, -1].argmax(dim=-1)
            for row, token in enumerate(best.tolist()):
                if row in open_rows:
                    written[row].append(token)
                    if token == self.eot_token_id or any(stop in self.tok_decode(written[row]) for stop in stops):
                        open_rows.remove(row)
            if not open_rows:
                break
            ids = best[:, None]
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        return written


def common_prefix(sequences: Sequence[Ids]) -> int:
    """How many tokens all sequences begin with."""
    first, last = min(sequences), max(sequences)  # in lexical order these two differ first
    return next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def grouped(requests: Sequence[tuple[Any, Ids, Ids]], max_length: int) -> list[Group]:
    """Requests with equal contexts together, the longest groups first so that a lack of memory shows at once.

    A request is cut on the left to the model's length, as `HFLM` does it; the last token of a continuation is scored and never an input.
    """
    by_context: dict[tuple[int, ...], list[int]] = {}
    for place, (_, context, continuation) in enumerate(requests):
        room = max_length + 1 - len(continuation)
        by_context.setdefault(tuple(context[-room:]), []).append(place)
    groups = []
    for start, places in by_context.items():
        targets = [requests[place][2] for place in places]
        inputs = [[*start, *target[:-1]] for target in targets]
        shared = common_prefix(inputs)
        groups.append(Group(inputs[0][:shared], [ids[shared:] for ids in inputs], len(start), targets, places))
    return sorted(groups, key=lambda group: (-len(group.shared), group.places))


def batches(groups: list[Group], most_rows: int, most_positions: int) -> list[list[Group]]:
    """Groups in order, cut into batches of at most so many rows and at most so many positions with logits; never an empty one."""
    done: list[list[Group]] = []
    for group in groups:
        tried = [*done[-1], group] if done else []
        rows = sum(len(one.targets) for one in tried)
        if tried and rows <= most_rows and rows * max(len(target) for one in tried for target in one.targets) <= most_positions:
            done[-1] = tried
        else:
            done.append([group])
    return done


def left_padded(sequences: list[Ids], pad: int, device: torch.device) -> torch.Tensor:
    """[row, longest] int64, padding in front."""
    longest = max(map(len, sequences))
    return torch.tensor([[pad] * (longest - len(ids)) + ids for ids in sequences], device=device)


def left_mask(lengths: list[int], device: torch.device) -> torch.Tensor:
    """[row, longest] int64: 0 on the padding in front, 1 on tokens."""
    longest = max(lengths)
    return torch.tensor([[0] * (longest - length) + [1] * length for length in lengths], device=device)


def right_padded(sequences: list[Ids], pad: int, device: torch.device) -> torch.Tensor:
    """[row, longest] int64, padding behind, where no scored token looks."""
    longest = max(map(len, sequences))
    return torch.tensor([ids + [pad] * (longest - len(ids)) for ids in sequences], device=device)
