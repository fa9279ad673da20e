"""Whether two models say the same: next-token distributions on held-out rows, teacher-forced, and greedy answers.

In: token ids of test rows, a model. Out: KL divergence, top-1 agreement, largest logit difference, answers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.errors import UserError
from stages.core.models import load_tokenizer
from stages.core.params_model import Limit
from stages.core.progress import progress
from stages.core.prompts import conversation, render_prompt
from stages.core.records import Row

if TYPE_CHECKING:
    import torch

WINDOW = 64  # next-token positions kept of a row, the last ones: the whole vocabulary is kept for each
BATCH = 8  # rows


@dataclass(frozen=True)
class Encoded:
    """A test row in token ids.

    Attributes:
        ids: prompt and answer in the chat template, up to the end of the answer.
        answer_start: the index of the first answer token in `ids`.
    """

    ids: tuple[int, ...]
    answer_start: int


def encode_rows(rows: list[Row], tokenizer_folder: Path, system: str | None, template: str) -> list[Encoded]:
    """Renders rows with the tokenizer and chat template of a folder.

    Args:
        rows: test rows; the last assistant message is the answer.
        tokenizer_folder: holds tokenizer and chat template.
        system: prompt.system.
        template: prompt.template.

    Returns:
        The rows in token ids, the end-of-turn token last.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    encoded = []
    for row in rows:
        messages = conversation(row, system, template)
        start = len(tokenizer.encode(render_prompt(tokenizer, messages[:-1]), add_special_tokens=False))
        full = str(tokenizer.apply_chat_template(messages, tokenize=False))
        ids = tokenizer.encode(full, add_special_tokens=False)
        # what a template writes after the end of the turn (a newline, mostly) is never generated
        ends = [place for place, token in enumerate(ids) if token == tokenizer.eos_token_id and place >= start]
        encoded.append(Encoded(tuple(ids[: ends[-1] + 1] if ends else ids), start))
    return encoded


@dataclass(frozen=True)
class Predictions:
    """What a model says at the last `WINDOW` next-token positions of each row.

    Attributes:
        logits: [positions, vocabulary] float32 on the CPU.
        answer: [positions] bool, whether the predicted token belongs to the answer.
    """

    logits: "torch.Tensor"
    answer: "torch.Tensor"


def predictions(model: Any, rows: list[Encoded]) -> Predictions:
    """Runs a model over rows.

    Args:
        model: a causal language model in evaluation mode.
        rows: at least one.

    Returns:
        The logits, rows in their order.
    """
    import torch

    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    kept: dict[int, torch.Tensor] = {}
    batches = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
    for batch in progress(batches, "export", unit="batch"):
        longest = max(len(rows[index].ids) for index in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for line, index in enumerate(batch):
            length = len(rows[index].ids)
            ids[line, :length] = torch.tensor(rows[index].ids)
            mask[line, :length] = 1
        with torch.inference_mode():
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        for line, index in enumerate(batch):
            last = len(rows[index].ids) - 1
            kept[index] = logits[line, max(0, last - WINDOW) : last].float().cpu()
    answers = []
    for index, row in enumerate(rows):
        predicted = range(len(row.ids) - kept[index].shape[0], len(row.ids))
        answers.append(torch.tensor([place >= row.answer_start for place in predicted]))
    return Predictions(torch.cat([kept[index] for index in range(len(rows))]), torch.cat(answers))


def compare(adapter: Predictions, merged: Predictions) -> dict[str, Any]:
    """How far the merged model is from the adapter, on the answers' tokens and on all tokens kept.

    KL divergence is of the merged distribution from the adapter's, sum p·(log p − log q), in nats.

    Args:
        adapter: the reference.
        merged: what is to be shipped, at the same positions.

    Returns:
        For `answer` and `all`: `positions`, `top1_agreement`, `kl_mean_nats`, `kl_p99_nats`, `max_logit_difference`.
    """
    import torch

    kl, same, gap = [], [], []
    for ours, theirs in zip(adapter.logits.split(256), merged.logits.split(256), strict=True):
        p, q = ours.log_softmax(-1), theirs.log_softmax(-1)
        kl.append((p.exp() * (p - q)).sum(-1).clamp(min=0))
        same.append(ours.argmax(-1) == theirs.argmax(-1))
        gap.append((ours - theirs).abs().amax(-1))
    columns = torch.cat(kl), torch.cat(same), torch.cat(gap)
    return {"answer": summary(*(column[adapter.answer] for column in columns)), "all": summary(*columns)}


def answers(model: Any, rows: list[Encoded], longest: int, stops: list[int]) -> list[list[int]]:
    """A model's greedy answers, by transformers.

    Args:
        model: a causal language model in evaluation mode.
        rows: whose prompts are answered.
        longest: tokens an answer may have.
        stops: ids that end an answer, part of it.

    Returns:
        The answers' token ids, rows in their order; one that ended by itself has a stop id last.
    """
    import torch

    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda index: rows[index].answer_start)
    found: list[list[int]] = [[] for _ in rows]
    for batch in progress([order[first : first + BATCH] for first in range(0, len(order), BATCH)], "answers", unit="batch"):
        widest = max(rows[index].answer_start for index in batch)
        ids = torch.full((len(batch), widest), stops[0])
        mask = torch.zeros_like(ids)
        for line, index in enumerate(batch):
            start = rows[index].answer_start
            ids[line, widest - start :] = torch.tensor(rows[index].ids[:start])
            mask[line, widest - start :] = 1
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=longest, do_sample=False, eos_token_id=stops,
                pad_token_id=stops[0],
            )  # fmt: skip
        for line, index in enumerate(batch):
            answer = made[line, widest:].tolist()
            ends = [place for place, token in enumerate(answer) if token in stops]
            found[index] = answer[: ends[0] + 1] if ends else answer
    return found


def summary(kl: "torch.Tensor", same: "torch.Tensor", gap: "torch.Tensor | None" = None) -> dict[str, Any]:
    """Positions in figures.

    Args:
        kl: [positions] float, KL divergence in nats.
        same: [positions] bool, whether the most probable token is the same.
        gap: [positions] float, largest difference of a logit, or None where there are no logits.

    Returns:
        `positions`, `top1_agreement`, `kl_mean_nats`, `kl_p99_nats` and, of logits, `max_logit_difference`.
    """
    figures = {
        "positions": len(kl),
        "top1_agreement": same.float().mean().item(),
        "kl_mean_nats": kl.mean().item(),
        "kl_p99_nats": kl.quantile(0.99).item(),
    }
    return figures if gap is None else {**figures, "max_logit_difference": gap.max().item()}


def check(form: str, found: dict[str, Any], limit: Limit) -> None:
    """The gate on a form that is shipped.

    Args:
        form: its name in export.forms.
        found: `answer` of `compare`, and what `held.told` gives.
        limit: export.limits of the form.

    Raises:
        UserError: it speaks otherwise than the adapter, does not stop where the adapter does, or answers otherwise.
    """
    answer = found["answer"]
    remedy = f"take {form} out of export.forms"
    # a NaN is not at most any limit
    if not (answer["top1_agreement"] >= limit.min_top1_agreement and answer["kl_mean_nats"] <= limit.max_kl_nats):
        raise UserError(
            f"{form} picks the adapter's next token at {answer['top1_agreement']:.4f} of {answer['positions']} answer positions, with a "
            f"mean KL divergence of {answer['kl_mean_nats']:.4g} nats; export.limits.{form} asks for {limit.min_top1_agreement} and "
            f"at most {limit.max_kl_nats}; {remedy}"
        )
    if found["stopped"] is not None and found["stopped"] < limit.min_stopped:
        raise UserError(
            f"{form} stops by itself in {found['stopped']:.4f} of the answers that the adapter ends, export.limits.{form}.min_stopped asks "
            f"for {limit.min_stopped}: its end-of-turn token is probably not the one it was trained with; {remedy}"
        )
    if found["same_answer"] < limit.min_same_answer:
        raise UserError(
            f"{form} gives the adapter's greedy answer to {found['same_answer']:.4f} of {found['answers']} test rows, "
            f"export.limits.{form}.min_same_answer asks for {limit.min_same_answer}; {remedy}"
        )
