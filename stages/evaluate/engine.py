"""lm-eval's Hugging Face model with no work done twice: the same answers and log-likelihoods from fewer tokens.

In: lm-eval's requests. Out: what `HFLM` returns for them. Rows lie end to end in one sequence, so that nothing is padding; an attention
mask keeps them apart and lets the choices of a question share its context, and all prompts their common beginning. A prompt that is
answered in the model's own words and by its likeliest label is read once for both, and an answer that goes along a label is known then.
Answers are continued together, however many passes their prompts took. The output layer, a fifth of a small model's work, sees only the
positions that are scored.
"""

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from stages.core.progress import progress
from stages.evaluate.pack import ALL, BY_ROW, Ids, Pack

PACK = 1024  # tokens of one pass at most, but for a longer row: attention's work grows with the square
HELD = 8 * PACK  # tokens whose keys and values wait for their answers' end, and one pass more: 2 GiB of an 8B model with 8 key heads


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
        self.by_row = self.packs and self.device.type == "cpu"
        if self.by_row:
            self.model.set_attn_implementation(BY_ROW)

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
        beginning = self._begin(groups[0].shared[:shared])
        for batch in self.shown(
            batches(groups, [len(g.targets) for g in groups], [g.tokens - shared for g in groups], int(self.batch_size))
        ):
            self._score(batch, copy.deepcopy(beginning), answers)
        return answers

    def _begin(self, shared: Ids) -> Pack:
        """Runs the tokens that all prompts begin with, so that each batch can go on after them."""
        beginning = Pack()
        if shared:
            beginning.add(shared, 0, ALL)
            self._forward(beginning, len(shared), [0])
        return beginning

    def _score(self, groups: list[Group], pack: Pack, answers: list[tuple[float, bool]]) -> None:
        """Runs some groups in one pass, after the tokens of `pack`, and writes each request's answer."""
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
        logits = self._forward(pack, len(pack.ids) - before, [index - before for index in wanted]).float()
        found = likelihoods(logits, [([row[index] for index in inputs], target) for _, inputs, target in asked])
        for (place, _, _), answer in zip(asked, found, strict=True):
            answers[place] = answer

    def _forward(self, pack: Pack, new: int, wanted: list[int]) -> torch.Tensor:
        """Runs the last `new` tokens of a pack, the others being in its cache, to which the new are added.

        Args:
            pack: all tokens so far.
            new: how many of them, at the end, have not been read.
            wanted: which of the new tokens' next-token logits to compute, counted among the new.

        Returns:
            [wanted, vocabulary] logits.
        """
        mask = pack.mask(new, self.model.dtype, self.device)
        output = self.model(
            input_ids=torch.tensor([pack.ids[-new:]], device=self.device),
            attention_mask=mask,
            position_ids=torch.tensor([pack.position[-new:]], device=self.device),
            past_key_values=pack.cache,
            use_cache=True,
            logits_to_keep=torch.tensor(wanted, device=self.device),
            **({"stretches": pack.stretches(new, mask)} if self.by_row else {}),
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
        rests = [prompt[shared:] for prompt in prompts]
        answers: list[Ids] = [[] for _ in prompts]

        def ended(ids: Ids) -> bool:
            return ids[-1] in self.ends or any(stop in self.tok_decode(ids) for stop in stops)

        def is_open(row: int) -> bool:
            return not answers[row] or (len(answers[row]) < limit and not ended(answers[row]))

        beginning = self._begin(prompts[0][:shared])
        waiting, held = set[int](), copy.deepcopy(beginning)
        beside = sum(len(choice) - 1 for choice in self.choices)
        places = list(range(len(rests)))
        for batch in self.shown(batches(places, [1] * len(rests), [len(rest) + beside for rest in rests], int(self.batch_size))):
            pack = copy.deepcopy(beginning)
            for row, known in self._read({row: rests[row] for row in batch}, pack).items():
                while is_open(row) and tuple(answers[row]) in known:
                    answers[row].append(known[tuple(answers[row])])
            undecided = set(filter(is_open, batch))
            if len(waiting | undecided) > int(self.batch_size) or len(held.ids) > HELD:
                self._continue(answers, held, waiting, is_open)
                waiting, held = set(), copy.deepcopy(beginning)
            held.take(pack, undecided)
            waiting |= undecided
        self._continue(answers, held, waiting, is_open)
        for request, ids in zip(requests, answers, strict=True):
            self.written[request.args[0]] = len(ids)
            if not ended(ids):
                self.cut.add(request.args[0])
        return [postprocess_generated_text(self.tok_decode(ids), stops, None) for ids in answers]

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

    def _continue(self, answers: list[Ids], pack: Pack, rows: set[int], is_open: Callable[[int], bool]) -> None:
        """Writes the answers of some rows to their ends, in place; `pack` holds their prompts, and no token of the answers yet."""
        start = {row: position + 1 for row, position in zip(pack.group, pack.position, strict=True)}  # a row's last position counts
        read = dict.fromkeys(sorted(rows), 0)
        while open_rows := [row for row in read if is_open(row)]:
            before = len(pack.ids)
            wanted = []
            for row in open_rows:
                pack.add(answers[row][read[row] :], start[row] + read[row], row)
                read[row] = len(answers[row])
                wanted.append(len(pack.ids) - 1 - before)
            best = self._forward(pack, len(pack.ids) - before, wanted).argmax(dim=-1).tolist()
            for row, token in zip(open_rows, best, strict=True):
                answers[row].append(token)

    def _read(self, rests: dict[int, Ids], pack: Pack) -> dict[int, dict[tuple[int, ...], int]]:
        """Runs prompts, each with the choices after it, which are scored.

        Args:
            rests: by row, what of its prompt comes after the tokens of `pack`.
            pack: what all prompts begin with; gets the others.

        Returns:
            By row the likeliest next token after nothing, and after every beginning of a choice.
        """
        before = len(pack.ids)
        wanted: list[int] = []
        asked: list[tuple[int, list[int], Ids]] = []  # row, rows of the logits, and the tokens that they predict
        ends = {}
        for row, rest in rests.items():
            ends[row] = len(wanted)
            wanted.append(pack.add(rest, before, row) + len(rest) - 1 - before)
            for branch, choice in enumerate(self.choices):
                first = pack.add(choice[:-1], before + len(rest), row, branch) - before
                asked.append((row, [ends[row], *range(len(wanted), len(wanted) + len(choice) - 1)], choice))
                wanted += range(first, first + len(choice) - 1)
        logits = self._forward(pack, len(pack.ids) - before, wanted).float()
        keys = [((*pack.ids[:before], *rests[row]), tuple(choice)) for row, _, choice in asked]
        self.scored.update(zip(keys, likelihoods(logits, [(places, choice) for _, places, choice in asked]), strict=True))
        best = logits.argmax(dim=-1).tolist()
        known: dict[int, dict[tuple[int, ...], int]] = {row: {(): best[end]} for row, end in ends.items()}
        for row, places, choice in asked:
            known[row] |= {tuple(choice[:count]): best[place] for count, place in enumerate(places)}
        return known


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
