"""The Python of the model card's "how to load it", which runs from the repository's root. In: parameters. Out: source text."""

import json
from collections.abc import Mapping
from typing import Any

ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from stages.core.models import base_folder, read_manifest

tokenizer = AutoTokenizer.from_pretrained("models/adapter")
base = AutoModelForCausalLM.from_pretrained(base_folder(read_manifest()))
{resize}model = PeftModel.from_pretrained(base, "models/adapter")
{ask}"""

MERGED = """\
from transformers import pipeline

{ask}"""

ASK = """\
ask = pipeline("text-generation", {model})

text = "Put the text here."
messages = [
{messages}]
print(ask(messages, max_new_tokens={max_new_tokens}, do_sample=False, return_full_text=False))"""


def adapter_snippet(sections: Mapping[str, Any], labelled: bool) -> str:
    """Loads the adapter over its base with transformers and PEFT and asks it one question."""
    resize = "base.resize_token_embeddings(len(tokenizer))\n" if sections["tokenize"]["new_tokens"] else ""
    return ADAPTER.format(resize=resize, ask=_ask("model=model, tokenizer=tokenizer", sections, labelled))


def merged_snippet(sections: Mapping[str, Any], labelled: bool) -> str:
    """Loads the merged model with transformers alone and asks it one question."""
    return MERGED.format(ask=_ask('model="models/export/merged"', sections, labelled))


def _ask(model: str, sections: Mapping[str, Any], labelled: bool) -> str:
    system, template = sections["prompt"]["system"], sections["prompt"]["template"]
    lines = []
    if labelled and system is not None:
        lines.append(f'    {{"role": "system", "content": {_literal(system)}}},\n')
    content = f'{_literal(template)}.replace("{{text}}", text)' if labelled else "text"
    lines.append(f'    {{"role": "user", "content": {content}}},\n')
    return ASK.format(model=model, messages="".join(lines), max_new_tokens=sections["evaluate"]["max_new_tokens"])


def _literal(text: str) -> str:
    """A string as Python writes it, in double quotes."""
    return json.dumps(text, ensure_ascii=False)
