"""A GGUF file in llama.cpp, inside this process: token ids of a conversation, next-token probabilities, greedy answers.

In: a file. Out: what llama.cpp makes of it. It listens on a socket of the file system that only this user can reach, never on a port.
"""

import http.client
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx = context
    settings.n_parallel = 1  # what shares a batch changes the last bits of a sum
    # its threads spin while they wait for each other, which on a busy machine takes ten times as long as one thread
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = max(1, (os.cpu_count() or 2) // 2)
    settings.verbosity = -1
    settings.warmup = False
    settings.ui = False
    return settings


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
        settings = parameters(path, context)
        settings.hostnames = [str(self._folder / "llama.sock")]
        try:
            self._server = xllamacpp.Server(settings)
        except Exception as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise UserError(f"llama.cpp cannot load {path.name}: {str(error).strip() or type(error).__name__}") from None
        self._letter = self.encode("a")[-1]

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
        # a bias makes it write a whole letter: where it would write a piece of one, it waits for the rest and tells nothing; what it tells
        # is the model's own distribution, without the bias
        asked = {"prompt": list(ids), "max_tokens": 1, "temperature": 0.0, "n_probs": top, "logit_bias": [[self._letter, 1e6]]}
        made = self._server.handle_completions(asked)["choices"][0]["logprobs"]["content"][0]
        return [(int(token["id"]), float(token["logprob"])) for token in made["top_logprobs"]]

    def answer(self, ids: Sequence[int], longest: int) -> Answer:
        """The greedy continuation.

        Args:
            ids: of the prompt.
            longest: tokens it may have.

        Returns:
            The answer.
        """
        asked = {"prompt": list(ids), "n_predict": longest, "temperature": 0.0, "return_tokens": True}
        made = self._post("/completion", asked)
        ended = made["stop_type"] == "eos"
        return Answer(tuple(map(int, made["tokens"][:-1] if ended else made["tokens"])), str(made["content"]), ended)

    def stream(self, ids: Sequence[int], longest: int) -> Iterator[str]:
        """The greedy continuation, piece by piece.

        Args:
            ids: of the prompt.
            longest: tokens it may have.

        Yields:
            Text.
        """
        asked = {"prompt": list(ids), "n_predict": longest, "temperature": 0.0, "stream": True}
        with self._asked("/completion", asked) as reply:
            for line in reply:
                if line.startswith(b"data: {"):
                    yield str(json.loads(line.removeprefix(b"data: "))["content"])

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with self._asked(path, body) as reply:
            found: dict[str, Any] = json.loads(reply.read())
        if "error" in found:
            raise UserError(f"llama.cpp's {path} says: {found['error'].get('message', found['error'])}")
        return found

    @contextmanager
    def _asked(self, path: str, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
        """The reply to a request over the socket."""
        link = http.client.HTTPConnection("localhost")
        link.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.sock.connect(str(self._folder / "llama.sock"))
            link.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            yield link.getresponse()
        finally:
            link.close()
