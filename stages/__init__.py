"""The stages of the pipeline. Importing this package, before any library of a stage, shuts every way out of the machine."""

import os

# Whether the user asked for an offline hub; fetch_model, the one stage that may reach a hub, honours it.
USER_OFFLINE = os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_IMPLICIT_TOKEN="1",
    DO_NOT_TRACK="1",
    DISABLE_TELEMETRY="1",
    WANDB_MODE="offline",
    DVC_NO_ANALYTICS="1",
    DVC_STUDIO_OFFLINE="true",
    TOKENIZERS_PARALLELISM="false",
)

# A thread that waits for the others sleeps. By default it spins, which on a machine that does anything else beside takes the core from
# the very thread it waits for: two to ten times slower here. The results are the same.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# PyTorch maps the GPU's memory in pieces that it can put together: micro-batches of changing sizes leave no gaps, and what is reserved is
# what is used (docs/performance.md has the figures).
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
