"""What the README shows is what the repository does: its pipeline, its stages, its commands, its links."""

import re
import subprocess
from pathlib import Path

from ruamel.yaml import YAML

from stages.core import paths
from tests.tiny import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """Every command of the README's shell blocks, without its comment."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    return [line.split("#")[0].split() for block in blocks for line in block.splitlines() if line.strip()]


def test_the_picture_of_the_pipeline_is_the_one_dvc_draws() -> None:
    drawn = subprocess.run(["dvc", "dag", "--mermaid"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = dict(re.findall(r'(node\d+)\["(.+?)"\]', drawn))
    edges = {(names[a], names[b]) for a, b in re.findall(r"(node\d+)-->(node\d+)", drawn)}
    picture = re.search(r"```mermaid\n(.*?)```", README, re.S)
    assert picture is not None
    shown = {(a.replace("_base", "@base").replace("_tuned", "@tuned"), b.replace("_base", "@base").replace("_tuned", "@tuned"))
             for a, b in re.findall(r"(\w+) --> (\w+)", picture[1])}  # fmt: skip
    assert shown == {(a, b) for a, b in edges if b != "card" or a == "compare"}


def test_the_table_of_stages_says_what_dvc_yaml_says() -> None:
    stages = YAML(typ="safe", pure=True).load((ROOT / paths.PIPELINE).read_text(encoding="utf-8"))["stages"]
    described = {}
    for name, entry in stages.items():
        if "foreach" in entry:
            described |= {f"{name}@{key}": item["desc"] for key, item in entry["foreach"].items()}
        else:
            described[name] = entry["desc"]
    rows = re.findall(r"^\| `([\w@]+)` \| (.*) \|$", README, re.M)
    assert {name: text for name, text in rows if name in described} == described


def test_every_make_target_of_the_readme_is_one_that_make_help_lists() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = {command[1] for command in commands() if command[0] == "make"}
    assert targets
    assert targets <= set(re.findall(r"make (\S+)", listed))


def test_every_luthier_command_of_the_readme_exists() -> None:
    used = set(re.findall(r"`luthier (\w+)", README)) | {command[1] for command in commands() if command[0] == "luthier"}
    assert used
    for name in used:
        subprocess.run(["luthier", name, "--help"], cwd=ROOT, capture_output=True, check=True)


def test_every_link_of_the_readme_leads_to_a_committed_file() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    folders = {str(parent) for name in tracked for parent in Path(name).parents}
    assert [link for link in links if link.rstrip("/") not in {*tracked, *folders}] == []
