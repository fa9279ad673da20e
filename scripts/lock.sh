#!/bin/sh
# Resolves pyproject.toml into requirements.lock (every package with its hashes, but torch and what its build brings) and
# versions.yaml (package: version), which dvc.yaml names as params so that a bump reruns just the stages that use the package.
# Usage: sh scripts/lock.sh [PACKAGE ...]   upgrades only the named packages; no name re-resolves only what pyproject.toml asks.
set -eu
skip="torch triton nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile
nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx
cuda-bindings cuda-pathfinder cuda-toolkit"
set -- $(for p in "$@"; do echo "--upgrade-package $p"; done) $(for p in $skip; do echo "--no-emit-package $p"; done)
uv pip compile pyproject.toml --extra train --extra eval --extra dev --python-version 3.11 --universal --generate-hashes \
  --no-annotate --no-header --quiet --output-file requirements.lock "$@"
python - <<'PY'
import re, tomllib
pins = dict(re.findall(r"^([a-z0-9-]+)==([^\s;\\]+)", open("requirements.lock").read(), re.M))
train = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["train"]
pins["torch"] = next(r.split("==")[1] for r in train if r.startswith("torch=="))
with open("versions.yaml", "w") as out:
    out.write("# Written by `make lock` from requirements.lock: the package versions that dvc.yaml names as params.\n")
    out.writelines(f'{name}: "{version}"\n' for name, version in sorted(pins.items()))
PY
