"""dvc.yaml, the code, the paths, the parameters and the pinned versions say the same; the layout keeps its rules."""

import ast
import importlib.metadata
import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from stages.core.params import Params
from tests import pipeline
from tests.pipeline import Stage
from tests.tiny import ROOT

ALL = [pytest.param(stage, id=stage.name) for stage in pipeline.stages()]
MODULES = sorted({stage.module for stage in pipeline.stages()})
# what runs on a machine without torch, so that rows can be prepared anywhere
DATA_STAGES = ["fetch_data", "fetch_general", "clean", "dedupe", "label_check", "suspicion", "split", "compare", "card"]
HEAVY = {"torch", "transformers", "peft", "trl", "lm_eval", "accelerate", "bitsandbytes"}


def files_of(module: str) -> set[str]:
    """Every project file that a stage runs and that can change its result."""
    return {name for own in pipeline.own_files(module) for name in pipeline.closure(own)}


@pytest.mark.parametrize("stage", ALL)
def test_a_stages_code_deps_are_exactly_the_files_it_imports(stage: Stage) -> None:
    assert stage.code == files_of(stage.module)


@pytest.mark.parametrize("stage", ALL)
def test_a_stage_names_the_version_of_every_package_it_imports(stage: Stage) -> None:
    distributions = importlib.metadata.packages_distributions()
    imported = {
        pipeline.normal(d)
        for file in files_of(stage.module)
        for name in pipeline.third_party(file)
        for d in distributions.get(name, [name])
    }
    assert imported - set(pipeline.EXEMPT_PACKAGES) <= stage.versions


@pytest.mark.parametrize("stage", ALL)
def test_a_stage_names_exactly_the_parameters_it_reads(stage: Stage) -> None:
    read = {chain for file in files_of(stage.module) for chain in pipeline.chains(file, "params")}
    read = {chain for chain in read if chain.split(".")[0] in Params.model_fields and not chain.startswith("runtime")}

    def covers(key: str, chain: str) -> bool:
        return f"{chain}.".startswith(f"{key}.")

    assert {chain for chain in read if not any(covers(key, chain) for key in stage.params)} == set(), "read, not named"
    assert {key for key in stage.params if not any(covers(key, chain) for chain in read)} == set(), "named, not read"


@pytest.mark.parametrize("module", MODULES)
def test_a_stage_reads_and_writes_exactly_the_paths_that_dvc_yaml_names(module: str) -> None:
    constants = pipeline.constants()
    entries = [stage for stage in pipeline.stages() if stage.module == module]
    declared = set().union(*(stage.data | stage.outs for stage in entries))

    def used(files: set[str]) -> list[set[str]]:
        names = {chain.split(".")[0] for file in files for chain in pipeline.chains(file, "paths")}
        return [constants[name] for name in names if name in constants and name not in {"PARAMS", "VERSIONS", "PIPELINE"}]

    assert [paths for paths in used(pipeline.own_files(module)) if not paths & declared] == [], "used, not declared"
    assert declared - set().union(*used(files_of(module))) == set(), "declared, not used"


def test_every_path_of_dvc_yaml_is_a_constant_and_every_constant_a_path_of_dvc_yaml() -> None:
    named = set().union(*(stage.data | stage.outs for stage in pipeline.stages()))
    constants = {name: paths for name, paths in pipeline.constants().items() if name not in {"PARAMS", "VERSIONS", "PIPELINE", "REPORTS"}}
    assert named == set().union(*constants.values())


def test_every_section_of_params_yaml_is_a_parameter_of_some_stage() -> None:
    used = {key.split(".")[0] for stage in pipeline.stages() for key in stage.params}
    assert used == set(Params.model_fields) - {"runtime"}


@pytest.mark.parametrize("stage", ALL)
def test_a_stage_says_in_dvc_yaml_what_it_does(stage: Stage) -> None:
    assert len(stage.desc) > 20


def test_no_out_persists_and_just_what_a_reader_wants_in_git_stays_out_of_the_cache() -> None:
    assert "persist:" not in (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    for stage in pipeline.stages():
        assert stage.uncached == {path for path in stage.outs if path.startswith("reports/")}, stage.name


@pytest.mark.parametrize("module", MODULES)
def test_a_stage_imports_no_other_stage_and_no_command(module: str) -> None:
    own = f"stages/{module}"
    assert {file for file in files_of(module) if not file.startswith((f"{own}.py", f"{own}/", "stages/core/"))} == set()


def test_what_stages_share_knows_no_stage() -> None:
    for file in (ROOT / "stages/core").glob("*.py"):
        imported = {name for name in pipeline.imports(file.relative_to(ROOT).as_posix()) if name.startswith("stages")}
        assert {name for name in imported if name != "stages" and not re.match(r"stages\.(core\b|USER_OFFLINE$)", name)} == set(), file.name


@pytest.mark.parametrize("module", DATA_STAGES)
def test_a_data_stages_code_imports_no_model_library(module: str) -> None:
    found = {name for file in files_of(module) - {"stages/core/models.py"} for name in pipeline.third_party(file)}
    assert found & HEAVY == set()


def test_importing_the_data_stages_loads_no_heavy_library() -> None:
    modules = [f"stages.{name}.__main__" if (ROOT / "stages" / name).is_dir() else f"stages.{name}" for name in DATA_STAGES]
    check = (
        f"import sys, importlib; [importlib.import_module(m) for m in {modules}]; print([m for m in {sorted(HEAVY)} if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def locked() -> dict[str, Requirement]:
    """The packages of requirements.lock, with the markers that say where they are installed."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    found = [Requirement(line.removesuffix("\\").strip()) for line in text.splitlines() if re.match(r"[a-z0-9]", line)]
    return {pipeline.normal(requirement.name): requirement for requirement in found}


def test_the_lock_has_a_hash_for_every_package_and_the_versions_file_says_the_same() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.M)[1:]
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    versions = YAML(typ="safe", pure=True).load((ROOT / "versions.yaml").read_text(encoding="utf-8"))
    torch = versions.pop("torch")
    assert {name: str(version) for name, version in versions.items()} == {
        n: str(r.specifier).removeprefix("==") for n, r in locked().items()
    }
    assert f'"torch=={torch}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_installed_packages_are_the_locked_ones() -> None:
    here = {name: requirement for name, requirement in locked().items() if requirement.marker is None or requirement.marker.evaluate()}
    found = {name: importlib.metadata.version(name) for name in here}
    assert found == {name: str(requirement.specifier).removeprefix("==") for name, requirement in here.items()}


def test_every_version_that_dvc_yaml_names_is_pinned() -> None:
    versions = YAML(typ="safe", pure=True).load((ROOT / "versions.yaml").read_text(encoding="utf-8"))
    assert set().union(*(stage.versions for stage in pipeline.stages())) - set(versions) == set()


def test_no_file_but_dvc_yaml_has_more_than_400_lines() -> None:
    kinds = ("*.py", "*.yaml", "*.yml", "*.md", "*.toml", "*.sh", "*.html", "Makefile")
    # reports are made, not written; DVC wants the whole table of contents in one file
    written = [path for path in pipeline.tracked(*kinds) if not path.is_relative_to(ROOT / "reports") and path != ROOT / "dvc.yaml"]
    long = {path.name: count for path in written if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400}
    assert long == {}


def test_every_module_opens_with_what_it_does() -> None:
    silent = [
        p for p in pipeline.tracked("stages/*.py", "tests/*.py") if p.stat().st_size and not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert silent == []


def test_no_file_names_a_path_of_one_machine_or_a_package_index() -> None:
    ban = re.compile(r"(?<![\w.~])/(?:home|root|Users|work|mnt)/\w|--(?:extra-)?index-url|pythonhosted|pypi\.(?:org|python)|trusted-host")
    found = []
    for path in pipeline.tracked("*.py", "*.md", "*.yaml", "*.yml", "*.toml", "*.sh", "*.json", "*.lock", "Makefile", ".dvc/config", ".ci"):
        if path.name != "test_contracts.py":
            found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in [ban.search(path.read_text(encoding="utf-8"))] if match]
    assert found == []
