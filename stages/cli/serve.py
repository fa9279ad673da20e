"""`luthier serve`: OpenAI's interface to a GGUF file on this machine's loopback address, by llama.cpp's own server.

In: the path of a .gguf. Out: HTTP until Ctrl-C. A key keeps the pages of other sites in this machine's browser out.
"""

import argparse
import secrets
import signal
from pathlib import Path

from stages.core.errors import UserError

CONTEXT = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the file, --port, --context and --key."""
    parser.add_argument("file", type=Path, help="models/export/gguf/model-q8_0.gguf, or any other GGUF file")
    parser.add_argument("--port", type=int, default=8080, help="of the server (8080); 0 for any free one")
    parser.add_argument("--context", type=int, default=CONTEXT, metavar="TOKENS", help=f"of a conversation at most ({CONTEXT})")
    parser.add_argument("--key", help="that requests must bear (a new one each time)")


def run(args: argparse.Namespace) -> None:
    """Serves until Ctrl-C or SIGTERM."""
    from stages.core.llama_cpp import parameters

    check_file(args.file)
    import xllamacpp

    settings = parameters(args.file, args.context)
    settings.hostnames, settings.port = ["127.0.0.1"], args.port
    key = args.key or secrets.token_urlsafe(24)
    settings.api_keys = [key]
    try:
        server = xllamacpp.Server(settings)
    except Exception as error:
        said = str(error).strip() or type(error).__name__
        raise UserError(f"llama.cpp cannot serve {args.file} on port {args.port} ({said}); is the port taken? try --port 0") from None
    print(f"export OPENAI_BASE_URL={server.listening_address}/v1 OPENAI_API_KEY={key}")
    print("Ctrl-C ends.", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        signal.pause()
    except KeyboardInterrupt:
        print()


def check_file(path: Path) -> None:
    """Stops where a path is no GGUF file, and says what serves the other forms.

    Args:
        path: as given.

    Raises:
        UserError: what it is, and what to do.
    """
    if path.is_dir():
        raise UserError(
            f"{path} is a folder; luthier serve takes a GGUF file (models/export/gguf), a merged folder is served by vLLM: "
            f"vllm serve {path} --host 127.0.0.1"
        )
    if not path.is_file():
        raise UserError(f"{path} is missing; make it: dvc repro export, with a GGUF form in export.forms")
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{path} is no GGUF file; those are in models/export/gguf")
