"""The jobs of docs/jobs for several hosts: what Slurm and Kubernetes read of them is checked, and their commands are run.

Slurm and Kubernetes themselves have stand-ins; the slow test starts two `torchrun` on this machine in place of two hosts.
"""

import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests import trainable
from tests.tiny import ROOT

SBATCH = ROOT / "docs/jobs/slurm/train.sbatch"
JOB = ROOT / "docs/jobs/kubernetes/train.yaml"
# what sbatch's manual page allows, as far as it is used here: each option with the form of its value, None without one
OPTIONS: dict[str, str | None] = {
    "job-name": r"[\w-]+",
    "nodes": r"\d+",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"\d+",
    "cpus-per-task": r"\d+",
    "mem": r"\d+[KMGT]",
    "time": r"(\d+-)?\d+:\d\d:\d\d",
    "signal": r"(B:)?[A-Z0-9]+@\d+",
    "requeue": None,
    "open-mode": r"append|truncate",
    "output": r"[\w./%-]+",
}


def stand_ins(folder: Path, *names: str) -> dict[str, str]:
    """Programs that write their arguments to folder/calls, one JSON list a line; the environment that has them in front of the others."""
    folder.mkdir()
    for name in names:
        program = folder / name
        program.write_text(
            "#!/usr/bin/env python3\nimport json, os, sys\n"
            f"open({str(folder / 'calls')!r}, 'a').write(json.dumps([{name!r}, *sys.argv[1:]]) + '\\n')\n"
            f"if {name!r} == 'scontrol': print('node7\\nnode8')\n"
        )
        program.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def calls(folder: Path) -> list[list[str]]:
    path = folder / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def directives() -> dict[str, str | None]:
    """The `#SBATCH` lines, by option."""
    found = [line.split(maxsplit=1)[1] for line in SBATCH.read_text(encoding="utf-8").splitlines() if line.startswith("#SBATCH")]
    return {name.removeprefix("--"): value or None for name, _, value in (option.partition("=") for option in found)}


def documents() -> dict[str, Any]:
    """The Kubernetes objects, by kind."""
    return {document["kind"]: document for document in yaml.safe_load_all(JOB.read_text(encoding="utf-8"))}


def option(call: list[str], name: str) -> str:
    """The value of `--name=value`."""
    return next(word.partition("=")[2] for word in call if word.startswith(f"--{name}="))


def test_slurm_reads_every_directive_of_the_job() -> None:
    lines = SBATCH.read_text(encoding="utf-8").splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert lines[0] == "#!/bin/bash"
    assert all(number < first_command for number, line in enumerate(lines) if line.startswith("#SBATCH"))  # later ones are not read
    for name, value in directives().items():
        form = OPTIONS[name]
        assert value is None if form is None else re.fullmatch(form, value or ""), f"--{name}={value}"
    assert directives()["ntasks-per-node"] == "1"  # one torchrun a host


def test_the_slurm_job_is_a_shell_script_without_faults() -> None:
    assert subprocess.run(["bash", "-n", str(SBATCH)], check=False).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", str(SBATCH)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_slurm_job_runs_the_training_on_all_hosts_and_the_rest_on_the_first(tmp_path: Path) -> None:
    environment = stand_ins(tmp_path / "bin", "srun", "scontrol")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    set_by_slurm = {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "41",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }
    subprocess.run(["bash", str(SBATCH)], env={**environment, **set_by_slurm}, cwd="/", check=True)
    names, rows, training, told, after = calls(tmp_path / "bin")
    assert names[0] == "scontrol"
    alone = ["srun", "--nodes=1", "--ntasks=1", "--nodelist=node7"]
    assert rows == [*alone, "dvc", "repro", "fetch_model", "tokenize"]
    assert told == [*alone, "dvc", "commit", "--force", "train"]
    assert after == [*alone, "dvc", "repro"]
    assert training[:2] == ["srun", "torchrun"]
    assert [option(training, name) for name in ("nnodes", "nproc-per-node", "rdzv-endpoint")] == ["2", "4", "node7:20041"]
    assert training[-2:] == ["--module", "stages.train"]


def test_the_kubernetes_job_is_valid_against_kubernetes_own_schema() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for document in documents().values():
        validator.validate(document, validator.latest_version(), strict=True)


def test_the_pods_of_the_kubernetes_job_find_one_another() -> None:
    service, job = documents()["Service"], documents()["Job"]
    pod = job["spec"]["template"]["spec"]
    assert (service["apiVersion"], job["apiVersion"]) == ("v1", "batch/v1")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}  # a label that the job's controller gives its pods
    assert pod["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] > 1
    assert pod["restartPolicy"] == "Never"
    mounted = {mount["name"] for container in (*pod["initContainers"], *pod["containers"]) for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("index", [0, 1])
def test_a_pod_of_the_kubernetes_job_runs_its_part(index: int, tmp_path: Path) -> None:
    job, port = documents()["Job"], documents()["Service"]["spec"]["ports"][0]["port"]
    pod = job["spec"]["template"]["spec"]
    (train,) = pod["containers"]
    environment = {**stand_ins(tmp_path / "bin", "dvc", "torchrun"), "JOB_COMPLETION_INDEX": str(index)}
    for container in (*pod["initContainers"], train):
        subprocess.run([*container["command"], *container["args"]], env=environment, check=True)
    *before, training = calls(tmp_path / "bin")
    assert before == ([["dvc", "repro", "fetch_model", "tokenize"]] if index == 0 else [])
    assert training[0] == "torchrun"
    assert option(training, "nnodes") == str(job["spec"]["completions"])
    assert option(training, "nproc-per-node") == str(train["resources"]["limits"]["nvidia.com/gpu"])
    assert option(training, "node-rank") == str(index)
    assert option(training, "master-addr") == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert option(training, "master-port") == str(port)
    assert training[-2:] == ["--module", "stages.train"]


@pytest.mark.slow
def test_two_hosts_that_meet_by_torchrun_publish_what_one_process_does(tmp_path: Path, tiny_base: Path) -> None:
    alone, hosts = (trainable.prepare(tmp_path / name, tiny_base, rows=16) for name in ("alone", "hosts"))
    code, said = trainable.run(alone)
    assert code == 0, said
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=luthier"]
    command = ["torchrun", *meeting, "--max-restarts=0", "--local-addr=127.0.0.1", "--module", "stages.train"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, cwd=hosts, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    words = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], words
    expected, found = (load_file(root / "models/adapter/adapter_model.safetensors") for root in (alone, hosts))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.allclose(found[name], tensor, atol=1e-5), name
    subprocess.run(["dvc", "commit", "--quiet", "--force", "train"], cwd=hosts, check=True)
    told = subprocess.run(["dvc", "status", "train"], cwd=hosts, capture_output=True, text=True, check=True).stdout
    assert "up to date" in told, told
