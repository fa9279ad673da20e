"""`luthier plan`: memory, speed, time, energy and disk of a training before it starts. In: config.json, params, rows. Out: a table, advice.

It needs neither a GPU nor torch. Exit code 1 where the job should not be done on the card asked about.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import paths, planner, planner_cards
from stages.core.errors import UserError
from stages.core.files import cache_root, read_details
from stages.core.models import located, read_manifest
from stages.core.params import Params, load_params
from stages.core.planner import GIB, Choice
from stages.core.planner_cards import Card
from stages.core.planner_job import Job, course, job, should_not, warnings
from stages.core.planner_links import KINDS, installed_link, link_of
from stages.core.planner_parallel import compared, preferred
from stages.core.planner_shape import FUSED, Shape, shape_of

CONTEXT_BYTES = int(0.6 * GIB)  # the driver's and CUDA's own, which PyTorch cannot have
ROWS = 1000  # where nothing says how many there are
ALIKE = 0.01  # speeds that differ less are the same; the base that is not rounded is then the better one
WIDTH = 26  # of a way's name
BASES = {"nf4": "NF4 (QLoRA)", "none": "bf16 (LoRA)"}


@dataclass(frozen=True)
class Question:
    """What is to be planned.

    Attributes:
        config: the base's config.json.
        lengths: tokens of each training row.
        validation: of each validation row.
        params: the pipeline's, with the command's changes.
        engine: fused | plain.
        base_is_here: whether the base is in the cache already.
    """

    config: dict[str, Any]
    lengths: Sequence[int]
    validation: Sequence[int]
    params: Params
    engine: str
    base_is_here: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --config, --gpu, --gpus, --link, --method, --rank, --tokens and --rows."""
    parser.add_argument("--config", metavar="FILE", type=Path, help="a model's config.json, or its folder (the base of params.yaml)")
    parser.add_argument("--gpu", metavar="CARD", help="a size (24GiB) or a name (RTX 4090); the card of this machine, else all known ones")
    parser.add_argument("--gpus", type=int, metavar="N", help="so many of that card in one host: every way to use them (train.parallel)")
    parser.add_argument("--link", choices=list(KINDS), help="between them (this machine's, else what such cards usually have)")
    parser.add_argument("--method", choices=["nf4", "lora"], help="nf4: QLoRA, lora: on a bf16 base (numerics.quantization)")
    parser.add_argument("--rank", type=int, metavar="N", help="of the LoRA (train.rank)")
    parser.add_argument("--tokens", type=int, metavar="N", help="of every row (the tokenised rows, else tokenize.max_tokens)")
    parser.add_argument("--rows", type=int, metavar="N", help="training rows (the tokenised rows, else split.max_train)")


def run(args: argparse.Namespace) -> None:
    """Prints the plan.

    Args:
        args: see `add_arguments`.

    Raises:
        UserError: an argument is wrong, or the job should not be done on that card.
    """
    for name in ("rank", "tokens", "rows", "gpus"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name} is {value}, expected 1 or more")
    question = asked(args)
    shape = shape_of(question.config)
    print(f"base    {shape.parameters / 1e9:.2f}B parameters, {shape.layers} layers of {shape.hidden}, vocabulary {shape.vocabulary:,}")
    mean, longest = sum(question.lengths) / len(question.lengths), max(question.lengths)
    print(f"rows    {len(question.lengths):,} of {mean:,.0f} tokens on average, the longest {longest:,}")
    train = question.params.train
    print(f"method  rank {train.rank}, effective batch {train.effective_batch}, {train.optimizer}, {question.engine} kernels")
    card = planner_cards.asked_for(args.gpu) if args.gpu else planner_cards.installed()
    if args.gpus:
        _print_ways(question, card, args)
    elif card is None:
        _print_cards(question, shape)
    else:
        _print_card(question, shape, card, free_bytes(card, args.gpu is None))


def asked(args: argparse.Namespace) -> Question:
    """Params, base and rows, with the command's changes.

    Args:
        args: see `add_arguments`.

    Returns:
        The question.
    """
    params = load_params()
    method = {None: params.numerics.quantization, "nf4": "nf4", "lora": "none"}[args.method]
    numerics = params.numerics.model_copy(update={"quantization": method})
    train = params.train.model_copy(update={"rank": args.rank or params.train.rank})
    params = params.model_copy(update={"numerics": numerics, "train": train})
    config, here = _config(args.config)
    family = config.get("text_config", config).get("model_type")
    fused = train.kernels != "plain" and family in FUSED and not train.dora and not train.dropout
    return Question(config, *_rows(args, params), params, "fused" if fused else "plain", here)


def _config(path: Path | None) -> tuple[dict[str, Any], bool]:
    """config.json, and whether its base is in the cache."""
    here = False
    if path is None:
        if not paths.BASE.is_file():
            raise UserError(
                f"{paths.BASE} is missing, so the base is unknown; run dvc repro fetch_model, or name a config.json: --config FILE"
            )
        manifest = read_manifest()
        path, here = located(manifest["source"], manifest["location"]) / "config.json", True
    path = path / "config.json" if path.is_dir() else path
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; fetch the base (dvc repro fetch_model), or name a config.json: --config FILE") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no JSON ({error}); name a model's config.json") from None
    return config, here


def _rows(args: argparse.Namespace, params: Params) -> tuple[list[int], list[int]]:
    """Tokens of each training and each validation row: the real ones where they are, else as told."""
    train, validation = _lengths(paths.TOKENIZED_TRAIN), _lengths(paths.TOKENIZED_VALIDATION)
    if train and args.rows:  # as many of the same kind
        train = [train[n * len(train) // args.rows] for n in range(args.rows)]
    if args.tokens:
        train = [args.tokens] * (args.rows or len(train) or params.split.max_train or ROWS)
        validation = [args.tokens] * len(validation)
    return train or [params.tokenize.max_tokens] * (args.rows or params.split.max_train or ROWS), validation


def _lengths(path: Path) -> list[int]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not path.is_file():
        return []
    found: list[int] = pc.list_value_length(pq.read_table(path, columns=["input_ids"])["input_ids"]).to_pylist()
    return found


def free_bytes(card: Card, is_installed: bool) -> int:
    """What PyTorch may have of a card: of the one in this machine what is free now."""
    if is_installed:
        import pynvml

        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).free) - CONTEXT_BYTES
    return card.memory_bytes - CONTEXT_BYTES


def chosen(question: Question, card: Card, available: int, quantization: str, fixed: bool = False) -> Choice:
    """The planner's choice on a card.

    Args:
        question: what is to be planned.
        card: for it.
        available: bytes that PyTorch may have.
        quantization: nf4 | none.
        fixed: whether train.micro_batch_tokens and train.recompute hold, instead of the planner's advice.

    Returns:
        The choice.
    """
    return planner.choose(**arguments(question, card, available, quantization, fixed))


def arguments(question: Question, card: Card, available: int, quantization: str, fixed: bool = False) -> dict[str, Any]:
    """The arguments of `planner.choose`, from those of `chosen`."""
    train, cap = question.params.train, question.params.runtime.gpu_memory_gib
    layers = shape_of(question.config).layers
    recompute = planner.recomputed_layers(train.recompute, layers)
    return {
        "config": question.config,
        "quantization": quantization,
        "rank": train.rank,
        "target_modules": train.target_modules,
        "lengths": question.lengths,
        "effective_batch": train.effective_batch,
        "optimizer": train.optimizer,
        "deterministic": train.deterministic,
        "available_bytes": available,
        "cap_bytes": None if cap is None else int(cap * GIB),
        "card_name": card.name,
        "engine": question.engine,
        "batching": train.batching,
        "micro_batch_tokens": train.micro_batch_tokens if fixed and isinstance(train.micro_batch_tokens, int) else None,
        "recompute": min(recompute, layers) if fixed and recompute is not None else None,
        "card": card,
        "runs": [*planner.past_runs(), *_workspace_run()],
    }


def _workspace_run() -> list[dict[str, Any]]:
    """The run that this workspace's reports tell of, if the planner led it and this user's list does not have it."""
    if not paths.TRAIN_MACHINE.is_file():
        return []
    last = read_details(paths.TRAIN_MACHINE)
    predicted = (last.get("plan") or {}).get("predicted")
    if predicted is None or last.get("gpu") is None:
        return []
    known = {round(run["tokens_per_second"], 1) for run in planner.past_runs()}
    if round(last["tokens_per_second"], 1) in known:
        return []
    return [planner.run_record(last["gpu"], Choice(**predicted), last["peak_gpu_bytes"], last["tokens_per_second"])]


def _print_card(question: Question, shape: Shape, card: Card, available: int) -> None:
    """The plans on one card, what they say of the disk, the warnings and the advice; raises UserError where it should not be done."""
    figures = f"{card.memory_bytes / GIB:.0f} GiB, {card.tflops:g} TFLOP/s bf16, {card.bandwidth:g} GB/s, {card.watts:.0f} W"
    cap = question.params.runtime.gpu_memory_gib
    room = available / GIB if cap is None else min(cap, available / GIB)
    print(f"card    {card.name} ({figures}), {room:.1f} GiB for training{'' if cap is None else ' (runtime.gpu_memory_gib)'}\n")
    asked_for: str = question.params.numerics.quantization
    plans: dict[str, Choice] = {}
    why: dict[str, str] = {}
    for quantization in BASES:
        try:
            plans[quantization] = chosen(question, card, available, quantization)
        except UserError as error:
            why[quantization] = str(error)
    rows = [(BASES[name], choice) for name, choice in plans.items()]
    if asked_for in plans and _is_fixed(question.params):
        try:
            rows.append((f"{BASES[asked_for]}, params.yaml's sizes", chosen(question, card, available, asked_for, fixed=True)))
        except UserError as error:
            why["params.yaml's sizes"] = str(error)
    jobs = {name: job(shape, choice, card, question.params, question.lengths, question.validation) for name, choice in rows}
    if rows:
        _print_table(rows, jobs)
    for name, reason in why.items():
        if plans:
            print(f"\n{BASES.get(name, name)}: {reason}")
    if not plans:
        raise UserError(f"this job should not be done on {card.name}: {why[asked_for]}")
    best = max(plans, key=lambda name: plans[name].tokens_per_second * (1 + ALIKE * (name == "none")))
    taken = asked_for if asked_for in plans else best
    _print_disk(question, jobs[BASES[taken]])
    _print_advice(question, plans, best, why)
    for text in _warned(question, jobs[BASES[taken]], shape, card):
        print(f"\nwarning: {text}")
    if too_long := should_not(jobs[BASES[best]]):
        raise UserError(f"this job should not be done on {card.name}: {too_long}")


def _print_ways(question: Question, card: Card | None, args: argparse.Namespace) -> None:
    """A line for each way to use several GPUs, and which of them `auto` takes; raises UserError where the job fits none."""
    if card is None:
        raise UserError("no card in this machine, so which ones are meant is unknown; name them: --gpu CARD")
    own = args.gpu is None
    link = installed_link(args.gpus, card) if own and args.link is None else link_of(card, args.link)
    available = free_bytes(card, own)
    print(f"cards   {args.gpus} x {card.name} ({card.memory_bytes / GIB:.0f} GiB each), {link.told}\n")
    job = arguments(question, card, available, question.params.numerics.quantization)
    ways = compared(args.gpus, link, job)
    print(f"{'way':<{WIDTH}}{'peak per GPU':>14}{'tokens/s':>10}{'training':>12}{'waits':>7}  micro-batch, recomputed")
    for way in ways:
        if way.choice is None:
            print(f"{way.name:<{WIDTH}}  {(way.why_not or '').split(';')[0]}")
            continue
        _, tokens = course(question.params.train, question.lengths)
        cost = f"{way.tokens_per_second:>10,.0f}{duration(tokens / way.tokens_per_second / 3600):>12}{way.exchange_share:>7.0%}"
        size = f"{way.choice.micro_batch_tokens:,}, {way.choice.recomputed} of {way.choice.layers}"
        print(f"{way.name:<{WIDTH}}{way.choice.peak_bytes / GIB:>10.1f} GiB{cost}  {size}")
    name, reason = preferred(args.gpus, link, ways)
    print(f"\nauto    {name}: {reason}")
    print("        speeds of several GPUs are computed from the link's; zero3 needs DeepSpeed (docs/planner-parallel.md)")


def _is_fixed(params: Params) -> bool:
    return isinstance(params.train.micro_batch_tokens, int) or params.train.recompute != "auto"


def _print_table(rows: Sequence[tuple[str, Choice]], jobs: dict[str, Job]) -> None:
    """A column a plan."""
    columns = [["", *(name for name, _ in rows)]]
    for title, cell in {
        "peak memory": lambda choice, _: f"{choice.peak_bytes / GIB:.1f} GiB",
        "tokens/s": lambda choice, _: f"{choice.tokens_per_second:,.0f}",
        "training": lambda _, job: duration(job.hours),
        "energy": lambda _, job: f"{job.kilowatt_hours:.2f} kWh",
        "steps": lambda _, job: f"{job.steps:,}",
        "micro_batch_tokens": lambda choice, _: f"{choice.micro_batch_tokens:,}",
        "accumulation": lambda choice, _: f"{choice.passes} pass{'es' * (choice.passes > 1)} a step",
        "recompute": lambda choice, _: f"{choice.recomputed} of {choice.layers} layers{' (offloaded)' if choice.offload else ''}",
    }.items():
        columns.append([title, *(cell(choice, jobs[name]) for name, choice in rows)])
    widths = [max(len(line[place]) for line in columns) for place in range(len(columns[0]))]
    for line in columns:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _print_disk(question: Question, planned: Job) -> None:
    base = "is there" if question.base_is_here else "to fetch"
    print(
        f"\ndisk    checkpoints {planned.checkpoint_bytes / GIB:.2f} GiB, adapter {planned.adapter_bytes / GIB:.2f} GiB, exported forms "
        f"{planned.export_bytes / GIB:.1f} GiB (adapter and forms once more in DVC's cache); base in the user-level cache "
        f"{planned.base_bytes / GIB:.1f} GiB ({base})"
    )


def _print_advice(question: Question, plans: dict[str, Choice], best: str, why: dict[str, str]) -> None:
    choice = plans[best]
    if best == "none":
        gain = choice.tokens_per_second / plans["nf4"].tokens_per_second - 1 if "nf4" in plans else 0
        reason = f"the base fits in bfloat16, which loses nothing to rounding{f' and is {gain:.0%} faster' if gain > ALIKE else ''}"
    elif "none" in why:
        reason = "a bfloat16 base does not fit"
    else:
        reason = "a bfloat16 base leaves so little memory that more is computed twice"
    text = f"numerics.quantization: {best} ({reason})"
    print(f"\nadvice  {text}\n        train.micro_batch_tokens: auto, train.recompute: auto ({'; '.join(choice.reasons)})")
    if question.params.numerics.quantization != best:
        print(f"        params.yaml or --method asks for {question.params.numerics.quantization}")


def _warned(question: Question, planned: Job, shape: Shape, card: Card) -> list[str]:
    cache = next(path for path in (cache_root(), *cache_root().parents) if path.exists())
    free, free_cache = shutil.disk_usage(".").free, shutil.disk_usage(cache).free
    return warnings(planned, shape, card, question.params, len(question.lengths), free, free_cache, question.base_is_here)


def _print_cards(question: Question, shape: Shape) -> None:
    """A line a known card, for a machine without one, and what this machine's processor did in its last run."""
    print("card    none in this machine; on others (--gpu CARD says more):\n")
    quantization = question.params.numerics.quantization
    print(f"{'card':<20}{'GiB':>5}{'peak GiB':>10}{'tokens/s':>10}{'training':>12}{'kWh':>8}  micro-batch, recomputed")
    for card in planner_cards.CARDS:
        head = f"{card.name:<20}{card.memory_bytes / GIB:>5.0f}"
        try:
            choice = chosen(question, card, free_bytes(card, False), quantization)
        except UserError:
            print(f"{head}  does not fit")
            continue
        planned = job(shape, choice, card, question.params, question.lengths, question.validation)
        cost = f"{choice.tokens_per_second:>10,.0f}{duration(planned.hours):>12}{planned.kilowatt_hours:>8.2f}"
        print(f"{head}{choice.peak_bytes / GIB:>10.1f}{cost}  {choice.micro_batch_tokens:,}, {choice.recomputed} of {choice.layers}")
    _print_processor(question)


def _print_processor(question: Question) -> None:
    """What the last run of this workspace, if it was on a processor, says of the next."""
    if not paths.TRAIN_MACHINE.is_file():
        return
    last = read_details(paths.TRAIN_MACHINE)
    if last.get("gpu") is None and last.get("tokens_per_second"):
        _, tokens = course(question.params.train, question.lengths)
        hours = tokens / last["tokens_per_second"] / 3600
        print(
            f"\nthis processor trained {last['tokens_per_second']:,.0f} tokens/s in the last run here: {duration(hours)} for these rows on "
            f"the base of that run"
        )


def duration(hours: float) -> str:
    """Hours as a person reads them."""
    if hours < 1:
        return f"{max(1, round(hours * 60))} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
