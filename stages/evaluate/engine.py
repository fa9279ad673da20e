"""lm-eval's Hugging Face model with no work done twice: the same answers and log-likelihoods from fewer tokens.

In: lm-eval's requests. Out: what `HFLM` returns for them. Rows lie end to end in one sequence, so that nothing is padding; an attention
mask keeps them apart and lets the choices of a question share its context, and all prompts their common beginning. A prompt that is
answered in the model's own words and by its likeliest label is read once for both. The output layer, a fifth of a small model's work, sees
only the positions that are scored.
"""

import contextlib
import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from transformers import DynamicCache

from stages.core.progress import progress

PACK = 1024  # tokens of one pass at most, but for a longer row: attention's work grows with the square
ALL = -1  # the group or branch of tokens that every group or branch sees

Ids = list[int]


@dataclass
class Pack:
    """Tokens that lie in one sequence: a token sees those before it in its own group, in its own branch and in what `ALL` see."""

    ids: Ids = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    group: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)

    def add(self, ids: Ids, start: int, group: int, branch: int = ALL) -> int:
        """Appends tokens.

        Args:
            ids: the tokens.
            start: the position of the first in its own row.
            group: the row or question they belong to.
            branch: the choice they belong to.

        Returns:
            The index of the first.
        """
        first = len(self.ids)
        self.ids += ids
        self.position += range(start, start + len(ids))
        self.group += [group] * len(ids)
        self.branch += [branch] * len(ids)
        return first

    def cut(self, length: int) -> None:
        """Forgets all tokens but the first `length`."""
        for values in (self.ids, self.position, self.group, self.branch):
            del values[length:]

    def mask(self, new: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """[1, 1, new, all] additive mask of the last `new` tokens over all: 0 where a token sees another, the lowest number elsewhere."""
        position, group, branch = (torch.tensor(values, device=device) for values in (self.position, self.group, self.branch))
        seen = position <= position[-new:, None]
        for owner in (group, branch):
            seen &= (owner == owner[-new:, None]) | (owner == ALL)
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)[None, None]


@dataclass(frozen=True)
class Group:
    """Requests with one context, such as a question's choices.

    Attributes:
        shared: the tokens that all their inputs begin with.
        tails: what follows in each request's input, often nothing.
        context: how many tokens of an input are not scored; token number `context` - 1 predicts the first scored one.
        targets: each request's tokens to score.
        places: each request's index in the caller's list.
    """

    shared: Ids
    tails: list[Ids]
    context: int
    targets: list[Ids]
    places: list[int]

    @property
    def tokens(self) -> int:
        """How many tokens go through the model."""
        return len(self.shared) + sum(map(len, self.tails))


class Engine(HFLM):
    """`HFLM` around a loaded model, equal to it within rounding; models whose layers attend to a window, or not at all, are left to it."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, stage: str, rendered: bool, choices: Sequence[str] = ()) -> None:
        """Wraps a model.

        Args:
            model: a loaded causal language model, with or without an adapter.
            tokenizer: its tokenizer.
            batch_size: rows for one forward pass, at most.
            stage: the name shown with the progress.
            rendered: whether prompts come from a chat template, which writes every special token itself, or are plain text.
            choices: what will be scored after the very prompts that are answered first, so that no prompt is read twice.
        """
        bos = False if rendered else None
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, add_bos_token=bos)
        self.stage = stage
        self.rendered = rendered
        self.terminal = sys.stderr
        self.choices = [self.tok_encode(choice) for choice in choices]
        self.scored: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[float, bool]] = {}  # by prompt and choice
        self.written: dict[str, int] = {}  # tokens of the answer to each prompt, its end included
        self.cut: set[str] = set()  # prompts whose answer had not ended at its limit
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special} | set(tokenizer.all_special_ids)
        self.ends = {self.eot_token_id, *(special if rendered else ())}
        config = self.model.config
        self.packs = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        self.packs &= getattr(config, "sliding_window", None) is None and hasattr(config, "num_attention_heads")

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
        """The tokens of the context and of the continuation; a rendered prompt keeps its own, last line break included, as in training."""
        if not self.rendered:
            return super()._encode_pair(context, continuation)
        whole, alone = self.tok_encode(context + continuation), self.tok_encode(context)
        joined = whole[: len(alone)] != alone  # into one token across the border, which a generating model never sees
        return alone, self.tok_encode(continuation) if joined else whole[len(alone) :]

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Ids, Ids]], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether it is the greedy one.

        Args:
            requests: key, context tokens, continuation tokens.
            disable_tqdm: for `HFLM` alone; here is one progress bar a stage.
            override_bs: for `HFLM` alone.

        Returns:
            One pair a request, in the requests' order.
        """
        if not self.packs:
            return super()._loglikelihood_tokens(list(requests), disable_tqdm, override_bs)
        answers = [self.scored.get((tuple(context), tuple(continuation)), (0.0, False)) for _, context, continuation in requests]
        unknown = [place for place, (_, *pair) in enumerate(requests) if tuple(map(tuple, pair)) not in self.scored]
        if not unknown:
            return answers
        groups = grouped(requests, unknown, self.max_length)
        shared = min(common_prefix([g.shared for g in groups]), min(g.context for g in groups) - 1)
        beginning, cache = self._begin(groups[0].shared[:shared])
        for batch in self.shown(
            batches(groups, [len(g.targets) for g in groups], [g.tokens - shared for g in groups], int(self.batch_size))
        ):
            self._score(batch, copy.deepcopy(beginning), copy.deepcopy(cache), answers)
        return answers

    def _begin(self, shared: Ids) -> tuple[Pack, DynamicCache]:
        """Runs the tokens that all prompts begin with, so that each batch can go on after them."""
        beginning, cache = Pack(), DynamicCache()
        if shared:
            beginning.add(shared, 0, ALL)
            self._forward(beginning, len(shared), cache, [0])
        return beginning, cache

    def _score(self, groups: list[Group], pack: Pack, cache: DynamicCache, answers: list[tuple[float, bool]]) -> None:
        """Runs some groups in one pass, after the tokens of `pack` and `cache`, and writes each request's answer."""
        before = len(pack.ids)
        asked: list[tuple[int, list[int], Ids]] = []
        for number, group in enumerate(groups):
            first = pack.add(group.shared[before:], before, number)
            for branch, (tail, target, place) in enumerate(zip(group.tails, group.targets, group.places, strict=True)):
                after = pack.add(tail, len(group.shared), number, branch)
                inputs = [*range(first, first + len(group.shared) - before), *range(after, after + len(tail))]
                asked.append((place, inputs[group.context - 1 - before :], target))
        wanted = sorted({index for _, inputs, _ in asked for index in inputs})
        row = {index: number for number, index in enumerate(wanted)}
        logits = self._forward(pack, len(pack.ids) - before, cache, [index - before for index in wanted]).float()
        found = likelihoods(logits, [([row[index] for index in inputs], target) for _, inputs, target in asked])
        for (place, _, _), answer in zip(asked, found, strict=True):
            answers[place] = answer

    def _forward(self, pack: Pack, new: int, cache: DynamicCache | None, wanted: list[int]) -> torch.Tensor:
        """Runs the last `new` tokens of a pack, the others being in the cache.

        Args:
            pack: all tokens so far.
            new: how many of them, at the end, are not in the cache.
            cache: keys and values of the tokens before; the new ones are added to it.
            wanted: which of the new tokens' next-token logits to compute, counted among the new.

        Returns:
            [wanted, vocabulary] logits.
        """
        output = self.model(
            input_ids=torch.tensor([pack.ids[-new:]], device=self.device),
            attention_mask=pack.mask(new, self.model.dtype, self.device),
            position_ids=torch.tensor([pack.position[-new:]], device=self.device),
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=torch.tensor(wanted, device=self.device),
        )
        return output.logits[0]

    @torch.inference_mode()
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, each up to its first stop string, its end or its limit of new tokens.

        A rendered answer ends at its first special token, whichever the template ends turns with; plain `HFLM` knows the tokenizer's
        end token alone and would read on where the two differ.

        Args:
            requests: prompt and generation settings each, the settings alike in all.
            disable_tqdm: for `HFLM` alone.

        Returns:
            One answer a request, in the requests' order.
        """
        settings = normalize_gen_kwargs(requests[0].args[1], self.max_gen_toks)
        limit = int(settings["max_gen_toks"])
        if not self.packs:
            said: list[str] = super().generate_until(requests, disable_tqdm)
            self.cut |= {asked.args[0] for asked, text in zip(requests, said, strict=True) if len(self.tok_encode(text)) >= limit}
            return said
        stops = handle_stop_sequences(settings["until"], self.tok_decode([self.eot_token_id], skip_special_tokens=False))
        prompts = [self.tok_encode(request.args[0])[-(self.max_length - limit) :] for request in requests]
        shared = min(common_prefix(prompts), min(map(len, prompts)) - 1)
        beginning, cache = self._begin(prompts[0][:shared])
        answers: list[str] = []
        rests = [prompt[shared:] for prompt in prompts]
        beside = sum(len(choice) - 1 for choice in self.choices)
        for batch in self.shown(batches(rests, [1] * len(rests), [len(rest) + beside for rest in rests], int(self.batch_size))):
            for ids in self._continue(batch, copy.deepcopy(beginning), copy.deepcopy(cache), stops, limit):
                prompt, text = requests[len(answers)].args[0], self.tok_decode(ids)
                self.written[prompt] = len(ids)
                if len(ids) == limit and ids[-1] not in self.ends and not any(stop in text for stop in stops):
                    self.cut.add(prompt)
                answers.append(postprocess_generated_text(text, stops, None))
        return answers

    def tokens_of(self, arguments: Sequence[tuple[Any, ...]], answer: str | None) -> tuple[int, int]:
        """What one item costs: the tokens of its prompt, and the new ones, generated or scored, of all its choices together.

        Args:
            arguments: the item's requests, prompt and continuation or generation settings each.
            answer: what was generated, or None.

        Returns:
            Both counts, of a prompt that nothing else shares.
        """
        prompt, second = arguments[0][:2]
        if answer is not None:
            room = self.max_length - int(second.get("max_gen_toks", self.max_gen_toks))
            return min(len(self.tok_encode(prompt)), room), self.written.get(prompt, len(self.tok_encode(answer)))
        pairs = [self._encode_pair(context, continuation) for context, continuation, *_ in arguments]
        return len(pairs[0][0]), sum(len(continuation) for _, continuation in pairs)

    def _continue(self, rests: list[Ids], pack: Pack, cache: DynamicCache, stops: list[str], limit: int) -> list[Ids]:
        """Greedy tokens after prompts of which `pack` and `cache` hold the common beginning."""
        before = len(pack.ids)
        for row, rest in enumerate(rests):
            pack.add(rest, before, row)
        ends = [end - 1 for end in accumulate(map(len, rests))]
        best = self._read(rests, pack, cache, ends).argmax(dim=-1).tolist()
        written: list[Ids] = [[token] for token in best]
        for step in range(1, limit):
            open_rows = [
                row
                for row, ids in enumerate(written)
                if len(ids) == step and ids[-1] not in self.ends and not any(stop in self.tok_decode(ids) for stop in stops)
            ]
            if not open_rows:
                break
            for row in open_rows:
                pack.add(written[row][-1:], before + len(rests[row]) + step - 1, row)
            best = self._forward(pack, len(open_rows), cache, list(range(len(open_rows)))).argmax(dim=-1).tolist()
            for row, token in zip(open_rows, best, strict=True):
                written[row].append(token)
        return written

    def _read(self, rests: list[Ids], pack: Pack, cache: DynamicCache, ends: list[int]) -> torch.Tensor:
        """[rests, vocabulary] logits after each prompt, `rests` ending `pack`; the choices are scored after them and forgotten."""
        length = len(pack.ids)
        before = length - sum(map(len, rests))
        wanted = list(ends)
        asked: list[tuple[list[int], Ids]] = []  # rows of the logits, and the tokens that they predict
        for row, rest in enumerate(rests):
            for branch, choice in enumerate(self.choices):
                after = pack.add(choice[:-1], before + len(rest), row, branch) - before
                asked.append(([row, *range(len(wanted), len(wanted) + len(choice) - 1)], choice))
                wanted += range(after, after + len(choice) - 1)
        logits = self._forward(pack, len(pack.ids) - before, cache, wanted)
        keys = [((*pack.ids[:before], *rest), tuple(choice)) for rest in rests for choice in self.choices]
        self.scored.update(zip(keys, likelihoods(logits.float(), asked), strict=True))
        if len(pack.ids) > length:
            cache.crop(length - len(pack.ids))
            pack.cut(length)
        return logits[: len(rests)]


def likelihoods(logits: torch.Tensor, asked: list[tuple[list[int], Ids]]) -> list[tuple[float, bool]]:
    """Log-likelihoods in nats of continuations, and whether each is the greedy one.

    Args:
        logits: [positions, vocabulary] float32.
        asked: the rows of `logits` that predict a continuation's tokens, and those tokens.

    Returns:
        One pair a continuation.
    """
    best, norms = logits.argmax(dim=-1), torch.logsumexp(logits, dim=-1)
    found = []
    for rows, target in asked:
        tokens = torch.tensor(target, device=logits.device)
        found.append((float((logits[rows, tokens] - norms[rows]).sum()), bool((best[rows] == tokens).all())))
    return found


def common_prefix(sequences: Sequence[Ids]) -> int:
    """How many tokens all sequences begin with."""
    first, last = min(sequences), max(sequences)  # in lexical order these two differ first
    return next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def grouped(requests: Sequence[tuple[Any, Ids, Ids]], chosen: Sequence[int], max_length: int) -> list[Group]:
    """Requests with equal contexts together, in order of their first.

    A request is cut on the left to the model's length, as `HFLM` does it; the last token of a continuation is scored and never an input.

    Args:
        requests: key, context tokens, continuation tokens.
        chosen: the indices of those to group.
        max_length: tokens the model can read.

    Returns:
        The groups.
    """
    by_context: dict[tuple[int, ...], list[int]] = {}
    for place in chosen:
        _, context, continuation = requests[place]
        room = max_length + 1 - len(continuation)
        by_context.setdefault(tuple(context[-room:]), []).append(place)
    groups = []
    for start, places in by_context.items():
        targets = [requests[place][2] for place in places]
        inputs = [[*start, *target[:-1]] for target in targets]
        shared = common_prefix(inputs)
        groups.append(Group(inputs[0][:shared], [ids[shared:] for ids in inputs], len(start), targets, places))
    return groups


def batches(items: list[Any], rows: list[int], tokens: list[int], most_rows: int) -> list[list[Any]]:
    """Items in order, in batches of at most `most_rows` rows and `PACK` tokens; an item that is larger alone has its own."""
    done: list[list[Any]] = []
    rows_left = tokens_left = 0
    for item, item_rows, item_tokens in zip(items, rows, tokens, strict=True):
        if not done or item_rows > rows_left or item_tokens > tokens_left:
            done.append([])
            rows_left, tokens_left = most_rows, PACK
        done[-1].append(item)
        rows_left -= item_rows
        tokens_left -= item_tokens
    return done
