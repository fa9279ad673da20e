"""Results of past runs with the versions that made them, and the same training by TRL. `python -m tests.references` writes them again."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.batches import IGNORED
from stages.train import adapter
from stages.train.sft import Training
from tests import trainable

FOLDER = Path(__file__).resolve().parent
PACKAGES = ("numpy", "peft", "torch", "transformers")


def read(name: str) -> dict[str, Any]:
    """A stored reference: `values` and `versions`."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def course(base: Path, root: Path, kernels: str) -> dict[str, list[float]]:
    """Twenty steps of the tiny base, in float32 on a CPU: loss and gradient norm of each, the validation losses."""
    training = trainable.training(base, root, kernels=kernels, epochs=20.0, max_steps=20, learning_rate=1e-2, eval_every=10)
    training.fit()
    found = {name: [point[name] for point in training.state.train] for name in ("loss", "grad_norm")}
    return {**found, "validation_loss": [point["loss"] for point in training.state.validation]}


def by_trl(base: Path, root: Path, training: Training, initial: adapter.Tensors) -> tuple[list[float], float]:
    """The plan of a training, run by transformers, PEFT and TRL's SFTTrainer, half of a step's rows at a time.

    Args:
        base: folder of the base.
        root: where the trainer may write.
        training: whose rows, order and settings; without warm-up, which transformers counts in another way.
        initial: the adapter at its start, by PEFT's names.

    Returns:
        The loss of each step, and the mean loss over the targets of the validation rows at the end.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    settings = training.settings
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=settings.target_modules, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    set_peft_model_state_dict(model, initial)

    def dataset(rows: list[Any]) -> Any:
        labels = [np.where(row.trained, row.input_ids, IGNORED).tolist() for row in rows]
        return Dataset.from_dict({"input_ids": [row.input_ids.tolist() for row in rows], "labels": labels})

    arguments = SFTConfig(
        output_dir=str(root),
        max_steps=len(training.plan),
        per_device_train_batch_size=settings.effective_batch // 2,
        gradient_accumulation_steps=2,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        train_sampling_strategy="sequential",
        loss_type="nll",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        per_device_eval_batch_size=len(training.validation),
    )
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=dataset([training.rows[row] for step in training.plan for row in step.rows]),
        eval_dataset=dataset(training.validation),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, trainer.evaluate()["eval_loss"]


def write(name: str, values: dict[str, list[float]]) -> None:
    """Stores a reference with the versions installed."""
    versions = {package: version(package) for package in PACKAGES}
    rounded = {key: [float(f"{value:.6g}") for value in listed] for key, listed in values.items()}
    (FOLDER / f"{name}.json").write_text(
        json.dumps({"values": rounded, "versions": versions}, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
