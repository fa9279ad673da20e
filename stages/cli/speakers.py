"""Models that answer in words: the base, the adapter on it, a merged folder, a GGUF file; all asked in the chat template of training.

In: the path of an artefact. Out: pieces of text as they are written.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core import paths
from stages.core.errors import UserError
from stages.core.prompts import ask, render_prompt
from stages.core.records import Message, iter_rows

if TYPE_CHECKING:
    from stages.core.params import Params

Speaker = Callable[[Sequence[Message]], Iterator[str]]
CONTEXT = 4096  # tokens of a conversation in llama.cpp


def open_speakers(artefact: Path, params: "Params", longest: int, stack: ExitStack, base: bool = True) -> dict[str, Speaker]:
    """The base and what was made of it, ready to answer; an adapter shares the base's weights with it.

    Args:
        artefact: models/adapter, a merged folder or a GGUF file.
        params: numerics and runtime are read.
        longest: tokens of an answer.
        stack: that closes them.
        base: whether the base is wanted too.

    Returns:
        `base`, unless it is not wanted, and `tuned`.
    """
    from stages.core.models import device_of, load_tokenizer, manifest_of
    from stages.export.merge import load_merged, load_tuned

    device = device_of(params.runtime.device)
    kind = kind_of(artefact)
    found: dict[str, Speaker] = {}
    if kind == "adapter" or base:
        manifest = manifest_of("tuned")
        where = artefact if kind == "adapter" else paths.ADAPTER
        model, tokenizer = load_tuned(manifest, params.numerics, device, where), load_tokenizer(where)
        if base:
            found["base"] = _of_transformers(model, tokenizer, longest, bare=True)
        if kind == "adapter":
            found["tuned"] = _of_transformers(model, tokenizer, longest)
    if kind == "merged":
        from stages.core.models import compute_dtype

        merged = load_merged(artefact, compute_dtype(params.numerics, device), device)
        found["tuned"] = _of_transformers(merged, load_tokenizer(artefact), longest)
    if kind == "gguf":
        from stages.core.llama_cpp import LlamaCpp

        llama = stack.enter_context(LlamaCpp(artefact, CONTEXT))
        found["tuned"] = lambda messages: llama.stream(llama.encode(llama.render(messages)), longest)
    return found


def kind_of(artefact: Path) -> str:
    """What a path is: adapter, merged or gguf.

    Args:
        artefact: the path.

    Returns:
        The kind.

    Raises:
        UserError: it is none.
    """
    if (artefact / "adapter_config.json").is_file():
        return "adapter"
    if (artefact / "config.json").is_file():
        return "merged"
    if artefact.is_file() and artefact.suffix == ".gguf":
        return "gguf"
    raise UserError(
        f"{artefact} is no artefact; there are {paths.ADAPTER}, {paths.EXPORT}/merged and {paths.EXPORT}/gguf/*.gguf (dvc repro)"
    )


def is_labelled() -> bool:
    """Whether the rows are texts with labels, which the prompt of params.yaml is put around."""
    row = next(iter(iter_rows(paths.SPLIT_TEST)), None) if paths.SPLIT_TEST.is_file() else None
    return row is not None and row.label is not None


def question(text: str, params: "Params", labelled: bool) -> list[Message]:
    """What is asked about a text, as in training."""
    return ask(text, params.prompt.system, params.prompt.template) if labelled else [{"role": "user", "content": text}]


def _of_transformers(model: Any, tokenizer: Any, longest: int, bare: bool = False) -> Speaker:
    """A model in this process; `bare` leaves its adapter out."""
    from threading import Event, Thread

    import torch
    from transformers import StoppingCriteriaList, TextIteratorStreamer

    def say(messages: Sequence[Message]) -> Iterator[str]:
        ids = torch.tensor([tokenizer.encode(render_prompt(tokenizer, messages), add_special_tokens=False)], device=model.device)
        pieces = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        failed: list[BaseException] = []
        left = Event()
        # a thread that is still inside PyTorch when the process ends aborts it
        stopping = StoppingCriteriaList([lambda ids, scores, **_: torch.full((len(ids),), left.is_set(), device=ids.device)])

        def write() -> None:
            try:
                with model.disable_adapter() if bare else nullcontext(), torch.inference_mode():
                    model.generate(
                        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=longest, do_sample=False, streamer=pieces,
                        stopping_criteria=stopping,
                        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
                    )  # fmt: skip
            except BaseException as error:
                failed.append(error)
                pieces.end()

        writer = Thread(target=write, daemon=True)
        writer.start()
        try:
            yield from pieces
        finally:
            left.set()
            writer.join()
        if failed:
            raise failed[0]

    return say
