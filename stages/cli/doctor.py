"""`luthier doctor`: whether this machine and this checkout are fit to run. In: both. Out: a line a check, with a remedy if it fails."""

import argparse
import importlib.metadata
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from stages.cli.doctor_gpus import links, nccl
from stages.core import paths
from stages.core.errors import UserError
from stages.core.models import cache_root

GIB = 2**30
# The embedded default takes 4 GiB of disk and 3 GiB of memory at its peak; below these a run is likely to fail.
LOW_DISK_BYTES = 10 * GIB
NO_DISK_BYTES = 2 * GIB
LOW_MEMORY_BYTES = 6 * GIB
NCCL_SECONDS = 120.0  # an all-reduce of a GiB takes a tenth of a second on the slowest link that is sold, and starting takes some

Finding = tuple[str, str]  # ok | warn | error, and what was found with what to do


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --nccl and --seconds."""
    parser.add_argument("--nccl", action="store_true", help="only how the GPUs are linked, and an all-reduce over them with its bandwidth")
    parser.add_argument(
        "--seconds", type=float, default=NCCL_SECONDS, metavar="S", help="after which --nccl takes it for hung (%(default)g)"
    )


def run(args: argparse.Namespace) -> None:
    """Prints a line for each check.

    Args:
        args: see `add_arguments`.

    Raises:
        UserError: a check found an error.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "python": _python,
        "packages": _packages,
        "params": _params,
        "device": _device,
        "links": links,
        "disk": _disk,
        "memory": _memory,
        "git": _git,
        "data": _data,
        "dvc": _dvc,
        "telemetry": _telemetry,
    }
    if args.nccl:
        checks = {"links": links, "nccl": lambda: nccl(args.seconds)}
    errors = 0
    for name, check in checks.items():
        for grade, text in check():
            errors += grade == "error"
            print(f"{grade:<6} {name:<10} {text}", flush=True)
    if errors:
        raise UserError(f"{errors} of the lines above are errors; mend them before running the pipeline")


def _python() -> Iterator[Finding]:
    yield "ok", f"{platform.python_version()} in {sys.prefix}"


def package_differences() -> list[str]:
    """Where the installed packages differ from versions.yaml, a sentence each."""
    from ruamel.yaml import YAML

    pinned: dict[str, str] = YAML(typ="safe", pure=True).load(paths.VERSIONS.read_text(encoding="utf-8"))
    other_systems = set(re.findall(r"^([a-z0-9-]+)==\S+ ; ", paths.LOCK.read_text(encoding="utf-8"), re.M))
    found = []
    for name, version in pinned.items():
        try:
            installed = importlib.metadata.version(name).split("+")[0]  # torch 2.13.0+cpu is torch 2.13.0
        except importlib.metadata.PackageNotFoundError:
            installed = "not installed"
        if installed != version and not (installed == "not installed" and name in other_systems):
            found.append(f"{name} is {installed}, {paths.VERSIONS} pins {version}")
    return found


def _packages() -> Iterator[Finding]:
    differences = package_differences()
    if differences:
        yield "error", f"{'; '.join(differences)}; remove .venv and run: make setup"
    else:
        yield "ok", f"all as {paths.VERSIONS} pins them"


def _params() -> Iterator[Finding]:
    from stages.core.params import load_params

    try:
        load_params()
        yield "ok", "params.yaml is valid"
    except UserError as error:
        yield "error", str(error)


def _device() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            yield "ok", f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, CUDA {torch.version.cuda}"
    elif shutil.which("nvidia-smi"):
        yield "warn", f"there is a GPU, but torch {torch.__version__} does not see it; check nvidia-smi and the driver's version"
    else:
        yield "warn", f"no CUDA device; training runs on {len(os.sched_getaffinity(0))} CPU cores: fine for the embedded default"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of an optional package
    try:
        import bitsandbytes.functional as quantizer

        quantizer.quantize_4bit(torch.ones(64, 64, device=device), quant_type="nf4")
        yield "ok", f"bitsandbytes quantises to NF4 on {device}"
    except Exception as error:  # any failure of its native code means the same to the user
        yield "error", f"bitsandbytes cannot quantise on {device} ({error}); set numerics.quantization: none"


def _disk() -> Iterator[Finding]:
    cache = cache_root()
    held = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    yield "ok", f"the cache of base models and downloads, {cache}, holds {held / GIB:.1f} GiB"
    for what, folder in (("here", Path()), ("for that cache", next(path for path in (cache, *cache.parents) if path.exists()))):
        free = shutil.disk_usage(folder).free
        grade = "error" if free < NO_DISK_BYTES else "warn" if free < LOW_DISK_BYTES else "ok"
        remedy = "" if grade == "ok" else "; free some (dvc gc --workspace, luthier clean-work)"
        yield grade, f"{free / GIB:.1f} GiB free {what}{remedy}"


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    if memory.available < LOW_MEMORY_BYTES:
        yield "warn", f"{text}; close other programs or lower train.micro_batch_tokens and evaluate.batch_size"
    else:
        yield "ok", text


def _git() -> Iterator[Finding]:
    from stages.core.provenance import git_commit

    state = git_commit()
    if state["commit"] is None:
        yield "warn", "no commit here, so no result can be traced to one; run: git init, git add -A, git commit"
    elif state["dirty"]:
        yield "warn", f"{state['commit'][:12]} with uncommitted changes; commit them before a release"
    else:
        yield "ok", f"{state['commit'][:12]}, clean"
    who = subprocess.run(["git", "config", "user.email"], capture_output=True, text=True, check=False)
    if who.returncode:
        yield "warn", "git knows no user, whom a release and an experiment name; run: git config user.name and user.email"


def _data() -> Iterator[Finding]:
    sources = [path for path in sorted(paths.SOURCES.iterdir()) if path.suffix != ".dvc" and path.name not in {"README.md", ".gitignore"}]
    loose = [path for path in sources if not path.with_name(f"{path.name}.dvc").is_file()]
    if loose:
        names = " ".join(map(str, loose))
        yield "warn", f"{names} is in no commit, so queued experiments and other machines have no such rows; run: dvc add {names}"
    else:
        yield "ok", f"{len(sources)} files of your own in {paths.SOURCES}, all tracked"


def _dvc() -> Iterator[Finding]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    from stages.cli.fresh import stale_stages

    try:
        with Repo() as repo:
            stale = stale_stages(repo, allow_missing=False)
    except DvcException as error:
        yield "error", f"{error}; run from the repository's root, after git clone and not from an archive"
        return
    if stale:
        yield "warn", f"stale: {', '.join(stale)}; run: make repro"
    else:
        yield "ok", "every stage is up to date"


def _telemetry() -> Iterator[Finding]:
    from dvc.config import Config

    config = Config.from_cwd()["core"]
    for switch in ("analytics", "check_update"):
        if config.get(switch, True):
            yield "warn", f"DVC's {switch} is on; run: dvc config core.{switch} false"
    talkative = sorted({"DVC_STUDIO_TOKEN", "DVC_EXP_AUTO_PUSH", "WANDB_API_KEY", "MLFLOW_TRACKING_URI"} & set(os.environ))
    if talkative:
        yield "warn", f"{', '.join(talkative)} is set, which sends results to a server; unset it if that is not meant"
    if not talkative and not config.get("analytics", True):
        yield "ok", "off: DVC's, the Hub's, and every tracking server's"
