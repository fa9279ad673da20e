"""A GGUF file in llama.cpp, inside this process: token ids of a conversation, next-token probabilities, greedy answers.

In: a file. Out: what llama.cpp makes of it. It listens on a socket of the file system that only this user can reach, never on a port.
"""

import http.client
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from stages.core.errors import UserError
from stages.core.records import Message


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        ids: of its tokens, the one that ended it left out.
        text: in words.
        ended: whether it stopped by itself, and not at the limit.
    """

    ids: tuple[int, ...]
    text: str
    ended: bool


def parameters(path: Path, context: int) -> Any:
    """llama.cpp's settings for a file: one conversation at a time, quiet, no page of its own.

    Args:
        path: of the .gguf.
        context: tokens it must hold at once.

    Returns:
        xllamacpp.CommonParams; where it listens is for the caller to say.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = context
    params.n_parallel = 1  # what shares a batch changes the last bits of a sum
    # its threads spin while they wait for each other, which on a busy machine takes ten times as long as one thread
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = max(1, (os.cpu_count() or 2) // 2)
    params.verbosity = -1
    params.warmup = False
    params.ui = False
    return params


class LlamaCpp:
    """A loaded GGUF file; a context manager, for the socket's sake."""

    def __init__(self, path: Path, context: int) -> None:
        """Loads the file.

        Args:
            path: of the .gguf.
            context: tokens it must hold at once.

        Raises:
            UserError: llama.cpp cannot load it.
        """
        import xllamacpp

        self._folder = Path(tempfile.mkdtemp(prefix="luthier-"))
        params = parameters(path, context)
        params.hostnames = [str(self._folder / "llama.sock")]
        try:
            self._server = xllamacpp.Server(params)
        except Exception as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise UserError(f"llama.cpp cannot load {path.name}: {str(error).strip() or type(error).__name__}") from None

    def __enter__(self) -> "LlamaCpp":
        """The loaded file."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Lets the file go and removes the socket."""
        del self._server
        shutil.rmtree(self._folder, ignore_errors=True)

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation in the file's own chat template, with the header of the answer to come."""
        return str(self._post("/apply-template", {"messages": list(messages)})["prompt"])

    def encode(self, text: str) -> list[int]:
        """The token ids of a rendered conversation, as its chat endpoint makes them."""
        return [int(token) for token in self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]]

    def probabilities(self, ids: Sequence[int], top: int) -> list[tuple[int, float]]:
        """The most probable next tokens.

        Args:
            ids: what comes before.
            top: how many.

        Returns:
            Id and natural logarithm of the probability among the whole vocabulary, the most probable first.
        """
        made = self._complete(ids, 1, top)
        return [(int(token["id"]), float(token["logprob"])) for token in made["logprobs"]["content"][0]["top_logprobs"]]

    def answer(self, ids: Sequence[int], longest: int) -> Answer:
        """The greedy continuation.

        Args:
            ids: of the prompt.
            longest: tokens it may have.

        Returns:
            The answer.
        """
        made = self._complete(ids, longest, 1)
        ended = made["finish_reason"] == "stop"
        tokens = [int(token["id"]) for token in made["logprobs"]["content"]]
        return Answer(tuple(tokens[:-1] if ended else tokens), str(made["text"]), ended)

    def _complete(self, ids: Sequence[int], longest: int, top: int) -> dict[str, Any]:
        asked = {"prompt": list(ids), "max_tokens": longest, "temperature": 0.0, "n_probs": top, "cache_prompt": True}
        made: dict[str, Any] = self._server.handle_completions(asked)["choices"][0]
        return made

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        link = http.client.HTTPConnection("localhost")
        link.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.sock.connect(str(self._folder / "llama.sock"))
            link.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            found: dict[str, Any] = json.loads(link.getresponse().read())
        finally:
            link.close()
        if "error" in found:
            raise UserError(f"llama.cpp's {path} says: {found['error'].get('message', found['error'])}")
        return found
