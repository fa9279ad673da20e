"""What dvc.yaml says and what the code does, read from their text: the stages, the files they import, the names they use."""

import ast
import json
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.core import paths
from tests.tiny import ROOT

# Project files whose every change leaves every result as it is; no stage depends on them.
EXEMPT_FILES = {
    "stages/__init__.py": "shuts network and telemetry off",
    "stages/core/__init__.py": "empty",
    "stages/core/params.py": "the schema holds no defaults: it lets values through or stops the stage",
    "stages/core/params_model.py": "as params.py",
    "stages/core/stage.py": "the frame: arguments and error sentences",
    "stages/core/errors.py": "the class of those errors",
    "stages/core/parallel.py": "results come in the order of the items, whatever the number of processes",
    "stages/core/paths.py": "a moved path is a changed dep or out of dvc.yaml already",
    "stages/core/progress.py": "what is shown while a stage runs",
    "stages/core/runs.py": "where a stage's work lies and who holds it",
}
# Packages whose every change leaves every result as it is; no stage names them in its versions.yaml params.
EXEMPT_PACKAGES = {
    "deepspeed": "an extra that moves the base's weights between processes and changes none",
    "nvidia-ml-py": "the energy counter of a GPU, in a report of the machine",
    "tqdm": "the progress bar",
    "triton": "PyTorch's own compiler, of the one version that torch asks for; a PyTorch for processors has none",
    "psutil": "memory and cores, in reports that no stage reads as input",
    "pydantic": "the schema",
    "dvclive": "the live log in the work dir",
    "rich": "the terminal",
}


@dataclass
class Stage:
    """One entry of dvc.yaml, foreach expanded.

    Attributes:
        name: as DVC names it, `evaluate@base`.
        module: the name after `python -m stages.`.
        code: deps below stages/.
        data: the other deps.
        outs: outs, metrics and plots.
        uncached: those with `cache: false`.
        params: keys of params.yaml.
        versions: keys of versions.yaml.
        desc: what it does.
    """

    name: str
    module: str
    code: set[str] = field(default_factory=set)
    data: set[str] = field(default_factory=set)
    outs: set[str] = field(default_factory=set)
    uncached: set[str] = field(default_factory=set)
    params: set[str] = field(default_factory=set)
    versions: set[str] = field(default_factory=set)
    desc: str = ""


@cache
def stages() -> tuple[Stage, ...]:
    """Every stage of dvc.yaml."""
    found = []
    for name, entry in YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items():
        items = entry.get("foreach", {"": None})
        for key, item in items.items():
            body = _interpolated(entry["do"], key, item) if item else entry
            stage = Stage(f"{name}@{key}" if key else name, body["cmd"].split()[2].removeprefix("stages."), desc=body.get("desc", ""))
            for dep in body["deps"]:
                (stage.code if dep.startswith("stages/") else stage.data).add(dep)
            for kind in ("outs", "metrics", "plots"):
                for out in body.get(kind, []):
                    path, options = (out, {}) if isinstance(out, str) else next(iter(out.items()))
                    stage.outs.add(path)
                    if options == {"cache": False}:
                        stage.uncached.add(path)
            for param in body.get("params", []):
                if isinstance(param, dict):
                    stage.versions |= set(param[str(paths.VERSIONS)])
                else:
                    stage.params.add(param)
            found.append(stage)
    return tuple(found)


def _interpolated(body: Any, key: str, item: dict[str, str]) -> Any:
    """A foreach's body with `${key}` and `${item.NAME}` replaced."""
    text = json.dumps(body).replace("${key}", key)
    return json.loads(re.sub(r"\$\{item\.(\w+)\}", lambda found: json.dumps(item[found[1]])[1:-1], text))


def own_files(module: str) -> set[str]:
    """The files of a stage's own file or folder that `python -m` runs or that those import, and its templates."""
    main = f"stages/{module}/__main__.py" if (ROOT / "stages" / module).is_dir() else f"stages/{module}.py"
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "stages" / module / "templates").glob("*")}
    return templates | {name for name in {main} | closure(main) if not name.startswith("stages/core/") and name not in EXEMPT_FILES}


@cache
def closure(file: str) -> frozenset[str]:
    """The project files that a file imports, directly or not, itself among them; exempt files are left out and not followed."""
    found: set[str] = set()
    waiting = [file]
    while waiting:
        name = waiting.pop()
        if name not in found and name not in EXEMPT_FILES and (ROOT / name).stat().st_size:
            found.add(name)
            waiting += imported_files(name)
    return frozenset(found)


@cache
def tree(file: str) -> ast.Module:
    """A file's syntax tree without the blocks that only a type checker reads."""

    class Drop(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else self.generic_visit(node)

    parsed = Drop().visit(ast.parse((ROOT / file).read_text(encoding="utf-8") if file.endswith(".py") else ""))
    assert isinstance(parsed, ast.Module)
    return parsed


def imports(file: str) -> set[str]:
    """Every module a file imports, in functions too; `from a import b` gives both `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported_files(file: str) -> set[str]:
    """The project files a file imports directly, the __init__.py of their folders too, and the JSON files beside it that it names."""
    named = {node.value for node in ast.walk(tree(file)) if isinstance(node, ast.Constant) and str(node.value).endswith(".json")}
    found = {f"{Path(file).parent}/{name}" for name in named if (ROOT / file).with_name(str(name)).is_file()}
    for module in imports(file):
        parts = module.split(".")
        if parts[0] == "stages":
            candidates = [f"{'/'.join(parts)}.py", *(f"{'/'.join(parts[:n])}/__init__.py" for n in range(1, len(parts) + 1))]
            found |= {name for name in candidates if (ROOT / name).is_file()}
    return found


def third_party(file: str) -> set[str]:
    """The top-level names of the modules a file imports that are neither the standard library's nor the project's."""
    return {module.split(".")[0] for module in imports(file)} - set(sys.stdlib_module_names) - {"stages", "__future__"}


def chains(file: str, name: str) -> set[str]:
    """What stands after `name.` where a file uses it: of `params.model.package.version`, `model.package.version`."""
    found: set[str] = set()
    inner: set[int] = set()
    for node in ast.walk(tree(file)):  # outer attributes come before inner ones
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            parts, value = [node.attr], node.value
            while isinstance(value, ast.Attribute):
                inner.add(id(value))
                parts.append(value.attr)
                value = value.value
            if isinstance(value, ast.Name) and value.id == name:
                found.add(".".join(reversed(parts)))
    return found


def constants() -> dict[str, set[str]]:
    """The constants of core/paths.py, each with its path, or its paths where it is a dict."""
    values = {name: value for name, value in vars(paths).items() if name.isupper()}
    return {
        n: {p.as_posix() for p in v.values()} if isinstance(v, dict) else {v.as_posix()} for n, v in values.items() if not n.startswith("_")
    }


def normal(name: str) -> str:
    """A package's name as the lock spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def tracked(*patterns: str) -> list[Path]:
    """The files git tracks, or would, below the root."""
    import subprocess

    command = ["git", "ls-files", "-co", "--exclude-standard", "--", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [path for path in (ROOT / name for name in sorted(set(names))) if path.is_file()]
