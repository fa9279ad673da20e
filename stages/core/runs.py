"""The keyed, locked, resumable work dir of a long stage.

The key is the digest of everything that changes the result, read from the stage's own entry in dvc.yaml: its command, the bytes of its
deps and the values of its params. DVC hashes these only after the command has ended (treeverse/dvc#11058), so a long stage takes the key
when it starts and compares it before it publishes.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.core import paths
from stages.core.errors import UserError
from stages.core.files import sha256_path

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def stage_inputs(stage: str) -> dict[str, Any]:
    """Everything that decides a stage's result: `cmd`, each `dep:PATH` with its sha256, each `param:FILE:KEY` with its value.

    Args:
        stage: the name in dvc.yaml, `name@item` for one of a foreach.

    Returns:
        The inputs by name, sorted.

    Raises:
        UserError: a dep is missing, or params.yaml lacks a key.
    """
    yaml = YAML(typ="safe", pure=True)
    name, _, item = stage.partition("@")
    entry = yaml.load(paths.PIPELINE.read_text(encoding="utf-8"))["stages"][name]
    if item:
        entry = _interpolate(entry["do"], item, entry["foreach"][item])
    inputs: dict[str, Any] = {"cmd": entry["cmd"]}
    for dep in entry.get("deps", []):
        if not Path(dep).exists():
            raise UserError(f"{dep}, which {stage} needs, is missing; run the stage that makes it: dvc repro {stage}")
        inputs[f"dep:{dep}"] = sha256_path(Path(dep))
    for param in entry.get("params", []):
        for file, keys in param.items() if isinstance(param, dict) else [(str(paths.PARAMS), [param])]:
            values = yaml.load(Path(file).read_text(encoding="utf-8"))
            for key in keys:
                inputs[f"param:{file}:{key}"] = _at(values, key, file)
    return dict(sorted(inputs.items()))


def _interpolate(entry: Any, key: str, item: dict[str, str]) -> Any:
    """A foreach's body with `${key}` and `${item.NAME}` replaced, as DVC does it."""
    if isinstance(entry, dict):
        return {name: _interpolate(value, key, item) for name, value in entry.items()}
    if isinstance(entry, list):
        return [_interpolate(value, key, item) for value in entry]
    if isinstance(entry, str):
        return re.sub(r"\$\{item\.(\w+)\}", lambda found: item[found[1]], entry.replace("${key}", key))
    return entry


def _at(values: Any, key: str, file: str) -> Any:
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            raise UserError(f"{file} has no {key}, which dvc.yaml names; add it")
        values = values[part]
    return values


def _leaves(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs by the names a reader knows: a file's path, `params.yaml: train.rank`, `dvc.yaml: cmd`."""
    leaves: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                walk(f"{name}.{key}", item)
        else:
            leaves[name] = value

    for name, value in inputs.items():
        kind, _, rest = name.partition(":")
        walk(rest.replace(":", ": ", 1) if kind == "param" else rest or f"{paths.PIPELINE}: {name}", value)
    return leaves


def digest(inputs: dict[str, Any]) -> str:
    """The key of a run: 16 hex digits of the sha256 of its inputs in canonical JSON."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Run:
    """A work dir held by this process.

    Attributes:
        stage: the stage's name.
        folder: `.work/STAGE/KEY`; what is in it was made from the same inputs.
        inputs: what the key was made of.
    """

    stage: str
    folder: Path
    inputs: dict[str, Any]

    def check_unmoved(self) -> None:
        """Compares the inputs with those of the start; call it just before publishing.

        Raises:
            UserError: an input changed while the stage ran; the work dir stays, so that putting the input back resumes.
        """
        start, now = _leaves(self.inputs), _leaves(stage_inputs(self.stage))
        moved = sorted(name for name in start.keys() | now.keys() if start.get(name, ...) != now.get(name, ...))
        if moved:
            raise UserError(
                f"{', '.join(moved)} changed while {self.stage} ran, so nothing was published; "
                f"put it back to keep this run's work, or run dvc repro again for the new value"
            )


def work_root() -> Path:
    """`.work` of the repository the user stands in; DVC sets DVC_ROOT to it in queued and temporary experiments too."""
    return Path(os.environ.get("DVC_ROOT", ".")) / ".work"


@contextlib.contextmanager
def held_run(stage: str) -> Iterator[Run]:
    """Takes the key, holds the work dir until the block ends, and ties this process's life to its parent's.

    Args:
        stage: the name in dvc.yaml.

    Yields:
        The run.

    Raises:
        UserError: another live process holds the same work dir.
    """
    die_with_parent()
    inputs = stage_inputs(stage)
    folder = work_root() / stage / digest(inputs)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"another {stage} with the same inputs is running (process {lock.read().strip() or 'unknown'}); wait for it or stop it"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        (folder / "inputs.json").write_text(json.dumps(inputs, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        yield Run(stage, folder, inputs)


def die_with_parent(number: int = signal.SIGTERM, parent: int | None = None) -> None:
    """Asks the kernel for a signal when the parent dies: a killed `dvc repro` must not leave a trainer holding the GPU (Linux only).

    Args:
        number: of the signal.
        parent: its process id, where it is known; else who is the parent now.
    """
    parent = os.getppid() if parent is None else parent
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died between the two calls
        os.kill(os.getpid(), number)
