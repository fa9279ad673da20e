"""A GGUF file held against what it was made from, by two readers that had no part in writing it: transformers' and llama.cpp.

In: the file, the merged folder, the adapter's predictions and answers. Out: figures; what differs in kind stops the stage.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from stages.core.errors import UserError
from stages.core.llama_cpp import LlamaCpp
from stages.core.parallel import cores
from stages.core.progress import progress
from stages.core.prompts import conversation
from stages.core.records import Row
from stages.export.agreement import WINDOW, Encoded, Predictions, summary

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf.gguf_reader import ReaderTensor

TOP = 200  # tokens llama.cpp gives the probability of; all others are taken together
HEADS = {"num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv"}  # GGUF's names
UNPACKED = 2**18  # weights of a tensor that are unpacked at once: what fits a processor's cache


def tensor_error(file: Path, merged: Path) -> tuple[str, float]:
    """The tensor of a GGUF file that is furthest from the merged one, as transformers reads both; one is in memory at a time.

    Names and the order of rows are those of transformers' GGUF reader, which itself would hold the whole model, not those of the writer.

    Args:
        file: the GGUF file.
        merged: the folder it was made from.

    Returns:
        The tensor's name in the folder, and the root mean square of its error over that of its weights.

    Raises:
        UserError: a tensor is missing in the file.
    """
    import numpy as np
    import torch
    from gguf import GGUFReader
    from safetensors import safe_open
    from transformers import AutoConfig
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    config = AutoConfig.from_pretrained(merged, local_files_only=True)
    places: dict[str, Path] = {}
    for shard in sorted(merged.glob("*.safetensors")):
        with safe_open(shard, "pt") as opened:
            places |= dict.fromkeys(opened.keys(), shard)
    reader = GGUFReader(file)
    kind = reader.fields["general.architecture"].contents()
    heads = {ours: reader.fields[f"{kind}.{theirs}"].contents() for ours, theirs in HEADS.items()}
    processor = TENSOR_PROCESSORS.get(kind, TensorProcessor)(config=heads)
    # of the model it asks for the names alone; given one, it would build the library's table of names again for each of its modules
    stand_in = SimpleNamespace(config=config, state_dict=lambda: dict.fromkeys(places), named_children=list)
    names = get_gguf_hf_weights_map(stand_in, processor, kind)
    if config.tie_word_embeddings:
        places.pop("lm_head.weight", None)
    worst = ("", 0.0)
    for tensor in progress(reader.tensors, "tensors", unit="tensor"):
        name = names.get(tensor.name)
        if name not in places:
            continue  # rope_freqs.weight, which transformers computes
        read = processor.process(weights=_unpacked(tensor), name=tensor.name).weights
        with safe_open(places.pop(name), "pt") as opened:
            wanted = opened.get_tensor(name)
        size = torch.linalg.vector_norm(wanted, dtype=torch.float32).clamp(min=1e-12)
        error = torch.from_numpy(np.ascontiguousarray(read)).reshape(wanted.shape).sub_(wanted).norm() / size
        # written so that a NaN is the worst of all
        worst = worst if float(error) <= worst[1] else (str(name), float(error))
    if places:
        raise UserError(f"{file.name} has no tensor for {min(places)} of the merged model; this is an error of export, please report it")
    return worst


def _unpacked(tensor: "ReaderTensor") -> "np.ndarray[Any, np.dtype[np.float32]]":
    """A tensor of the file in float32, unpacked a few rows at a time: the library's temporary arrays are several times their size."""
    import numpy as np
    from gguf import dequantize

    made = np.empty(tensor.shape[::-1], np.float32)
    some = max(1, UNPACKED // int(tensor.shape[0]))

    def chunk(first: int) -> None:
        made[first : first + some] = dequantize(tensor.data[first : first + some], tensor.tensor_type)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(chunk, range(0, len(made), some)))
    return made


def check_template(llama: LlamaCpp, rows: list[Row], encoded: list[Encoded], system: str | None, template: str, form: str) -> None:
    """Stops where the file's chat template or tokenizer makes other token ids than those the adapter was trained on.

    Args:
        llama: the loaded file.
        rows: whose conversations are rendered.
        encoded: the same rows as the adapter's tokenizer has them.
        system: prompt.system.
        template: prompt.template.
        form: its name in export.forms.

    Raises:
        UserError: the first row that differs.
    """
    for row, ours in zip(rows, encoded, strict=True):
        found = llama.encode(llama.render(conversation(row, system, template)[:-1]))
        wanted = list(ours.ids[: ours.answer_start])
        if found != wanted:
            place = next((place for place, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), len(wanted))
            raise UserError(
                f"in llama.cpp {form}'s chat template renders test row {row.id} to other token ids than the adapter's: at token "
                f"{place} {found[place : place + 3]} for {wanted[place : place + 3]}; take {form} out of export.forms"
            )


def agreement(llama: LlamaCpp, encoded: list[Encoded], adapter: Predictions) -> dict[str, Any]:
    """How far llama.cpp is from the adapter on the answers' tokens, teacher-forced.

    llama.cpp tells the probabilities of its `TOP` most probable tokens; all others count as one, so that the KL divergence is at most the
    one over the whole vocabulary (data-processing inequality).

    Args:
        llama: the loaded file.
        encoded: test rows.
        adapter: the reference on the same rows.

    Returns:
        As `agreement.summary` gives it.
    """
    import torch

    logs = adapter.logits.log_softmax(-1)
    kl, same, place = [], [], 0
    for row in progress(encoded, "llama.cpp", unit="row"):
        kept = min(len(row.ids) - 1, WINDOW)
        for end in range(len(row.ids) - kept, len(row.ids)):
            if end >= row.answer_start:
                said = llama.probabilities(row.ids[:end], TOP)
                ids = torch.tensor([token for token, _ in said])
                kl.append(_divergence(logs[place].double(), ids, torch.tensor([value for _, value in said], dtype=torch.float64)))
                same.append(int(ids[0]) == int(logs[place].argmax()))
            place += 1
    return summary(torch.stack(kl), torch.tensor(same))


def _divergence(reference: "torch.Tensor", ids: "torch.Tensor", found: "torch.Tensor") -> "torch.Tensor":
    """KL divergence in nats, the tokens outside `ids` as one."""
    p = reference[ids]
    rest_p, rest_q = (1 - p.exp().sum()).clamp(min=1e-12), (1 - found.exp().sum()).clamp(min=1e-12)
    return ((p.exp() * (p - found)).sum() + rest_p * (rest_p / rest_q).log()).clamp(min=0)


def llama_answers(llama: LlamaCpp, encoded: list[Encoded], longest: int, stops: list[int]) -> list[list[int]]:
    """llama.cpp's greedy answers to the rows' prompts, in the form of `agreement.answers`."""
    found = []
    for row in progress(encoded, "answers", unit="row"):
        answer = llama.answer(row.ids[: row.answer_start], longest)
        found.append([*answer.ids, stops[0]] if answer.ended else list(answer.ids))
    return found
