"""How to serve what was exported: an Ollama Modelfile beside the GGUF files, and the command lines of other servers.

In: the merged folder and the forms. Out: gguf/Modelfile and serve.md.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.core.models import load_tokenizer
from stages.export.gguf_file import stop_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFERRED = ("q4_k_m", "q8_0", "f16")  # the Modelfile names the smallest
SYSTEM, USER, ANSWER = "\u2402system\u2403", "\u2402user\u2403", "\u2402answer\u2403"  # signs that no template writes


def ollama_template(tokenizer: "PreTrainedTokenizerBase", stops: Sequence[str]) -> str | None:
    """The chat template in Ollama's language, found by rendering and not by reading it: what stands around the messages' contents.

    Args:
        tokenizer: with the chat template.
        stops: the texts that end a turn.

    Returns:
        The TEMPLATE, or None where a conversation is more than its turns in a row, or a turn's end is no stop token.
    """

    def rendered(*contents: str) -> str | None:
        roles = {SYSTEM: "system", USER: "user", ANSWER: "assistant"}
        messages = [{"role": roles[content], "content": content} for content in contents]
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception:  # a template may refuse a role, by an error of any kind
            return None

    def turn(text: str) -> tuple[str, str]:
        """The end of one turn and the beginning of the next."""
        end = max((text.rfind(stop) + len(stop) for stop in stops if stop in text), default=0)
        end += len(text[end:]) - len(text[end:].lstrip("\n"))
        return text[:end], text[end:]

    long, short = rendered(SYSTEM, USER, ANSWER, USER), rendered(USER)
    if long is None or short is None or not re.fullmatch(f"(?s).*{SYSTEM}.*{USER}.*{ANSWER}.*{USER}.*", long):
        return None
    before_system, between, header, after, _ = re.split(f"{SYSTEM}|{USER}|{ANSWER}", long)
    (after_system, before_user), (after_user, before_answer) = turn(between), turn(header)
    after_answer = turn(after)[0]
    default = short.split(USER)[0].removesuffix(before_user)  # what is written where nobody gives a system message

    def composed(*contents: str) -> str:
        around = {SYSTEM: (before_system, after_system), USER: (before_user, after_user), ANSWER: (before_answer, after_answer)}
        turns = "".join(f"{around[content][0]}{content}{around[content][1]}" for content in contents)
        return f"{'' if contents[0] == SYSTEM else default}{turns}{before_answer}"

    trials = ((SYSTEM, USER), (USER,), (SYSTEM, USER, ANSWER, USER), (USER, ANSWER, USER))
    if not after_answer or any(composed(*trial) != rendered(*trial) for trial in trials):
        return None
    if tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]:  # which llama.cpp writes itself
        before_system, default = (text.removeprefix(str(tokenizer.bos_token)) for text in (before_system, default))
    first = f'{{{{ if and (eq $i 0) (ne .Role "system") }}}}{default}{{{{ end }}}}' if default else ""
    return (
        f'{{{{ range $i, $_ := .Messages }}}}{first}{{{{ if eq .Role "system" }}}}{before_system}{{{{ .Content }}}}{after_system}'
        f'{{{{ else if eq .Role "user" }}}}{before_user}{{{{ .Content }}}}{after_user}'
        f"{{{{ else }}}}{before_answer}{{{{ .Content }}}}{after_answer}{{{{ end }}}}{{{{ end }}}}{before_answer}"
    )


def modelfile(folder: Path, form: str) -> str:
    """An Ollama Modelfile for a GGUF file beside it.

    Args:
        folder: the merged model with its tokenizer.
        form: of the GGUF file.

    Returns:
        Its text.
    """
    tokenizer = load_tokenizer(folder)
    stops = [str(tokenizer.convert_ids_to_tokens(number)) for number in stop_ids(folder)]
    template = ollama_template(tokenizer, stops)
    context = json.loads((folder / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    lines = [f"FROM ./model-{form}.gguf"]
    if template is None:
        lines.append("# the chat template says more than Ollama's can; Ollama takes the one it knows the file's own by")
    else:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    # greedy as measured: Ollama's own penalty on repeated tokens, 1.1 by its documentation, would change the most probable token too
    return "\n".join([*lines, f"PARAMETER num_ctx {min(context, 8192)}", "PARAMETER temperature 0", "PARAMETER repeat_penalty 1", ""])


def write_serving(folder: Path, forms: Sequence[str], merged: Path) -> None:
    """Writes gguf/Modelfile and serve.md.

    Args:
        folder: models/export.
        forms: export.forms.
        merged: the merged model, from which tokenizer and stop tokens are read.
    """
    lines = [
        "# How to serve what lies here",
        "",
        "Commands for the repository's root; none of them is run by Luthier's own tests but the first.",
        "",
    ]
    files = [form for form in PREFERRED if form in forms]
    for form in files:
        lines.append(f"    luthier serve models/export/gguf/model-{form}.gguf      # llama.cpp, OpenAI's interface, this machine only")
    if files:
        (folder / "gguf/Modelfile").write_text(modelfile(merged, files[0]), encoding="utf-8")
        lines.append("    ollama create tuned -f models/export/gguf/Modelfile && ollama run tuned")
    if "merged" in forms:
        lines.append("    vllm serve models/export/merged --dtype bfloat16 --host 127.0.0.1 --served-model-name tuned")
    (folder / "serve.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
