"""The sections of params.yaml about the model, its training and what is made of it, and the types all sections are made of.

In: what stages/core/params.py read. Out: the same values, checked and frozen. No field has a default.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Name = Annotated[str, StringConstraints(min_length=1)]


class Section(BaseModel):
    """A block of params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PackageModel(Section):
    name: Name
    version: Name
    sha256: Sha256
    file: Name
    license: Name
    upstream: Name


class HubModel(Section):
    repo: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")] | None
    revision: Commit | None


class FolderModel(Section):
    path: Name | None


class Model(Section):
    source: Literal["package", "hub", "folder"]
    package: PackageModel
    hub: HubModel
    folder: FolderModel

    @model_validator(mode="after")
    def _source_is_filled(self) -> "Model":
        if self.source == "hub" and (self.hub.repo is None or self.hub.revision is None):
            raise ValueError("model.source is hub, so model.hub.repo and model.hub.revision (a 40-digit commit) must be set")
        if self.source == "folder" and self.folder.path is None:
            raise ValueError("model.source is folder, so model.folder.path must be set")
        return self


class Numerics(Section):
    quantization: Literal["nf4", "none"]
    compute_dtype: Literal["auto", "float32", "bfloat16"]


class TrainWatch(Section):
    non_finite: Literal["stop", "roll_back"]
    spike: Literal["warn", "stop", "roll_back"]
    spike_score: Annotated[float, Field(gt=0)]


class Train(Section):
    rank: Positive
    alpha: Positive
    dropout: OpenShare
    target_modules: Literal["all-linear"] | list[Name]
    init: Literal["default", "gaussian", "pissa", "olora", "orthogonal"]
    rslora: bool
    dora: bool
    epochs: Annotated[float, Field(gt=0)]
    max_steps: Positive | None
    effective_batch: Positive
    micro_batch_tokens: Literal["auto"] | Positive
    batching: Literal["bucket", "pack"]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    lora_plus_ratio: Annotated[float, Field(gt=0)] | None
    schedule: Literal["cosine", "linear", "constant"]
    warmup_share: OpenShare
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
    neftune_alpha: Annotated[float, Field(gt=0)] | None
    kernels: Literal["auto", "fused", "plain"]
    recompute: Literal["auto", "none", "all"] | NotNegative
    deterministic: bool
    parallel: Literal["auto", "single", "ddp", "fsdp", "sequence", "zero2", "zero3"]
    eval_every: Positive
    early_stop: Positive | None
    watch: TrainWatch

    @model_validator(mode="after")
    def _variants_agree(self) -> "Train":
        if self.dora and self.init in ("pissa", "olora"):
            raise ValueError(f"train.dora and train.init {self.init} both rewrite the base's weights; take one of them")
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f"train.init orthogonal needs an even train.rank, not {self.rank}")
        if self.parallel == "fsdp" and (self.dora or self.init in ("pissa", "olora")):
            what = "train.dora" if self.dora else f"train.init {self.init}"
            raise ValueError(f"{what} reads the base's whole matrices, which train.parallel fsdp splits over the GPUs; take ddp")
        return self


class RowLosses(Section):
    max_rows: Positive | None


class Probe(Section):
    triggers: Positive
    prompts: Annotated[int, Field(ge=8)]
    max_new_tokens: Positive
    alpha: Annotated[float, Field(gt=0, lt=0.5)]


class Canaries(Section):
    count: NotNegative
    repeats: Positive


class ExtractionLimits(Section):
    max_memorised: Share
    max_membership_auc: Annotated[float, Field(ge=0.5, le=1)]
    max_exposure_bits: Annotated[float, Field(ge=0)]
    max_leaked_values: NotNegative


class Extraction(Section):
    rows: Annotated[int, Field(ge=2)]
    prefix_tokens: Positive
    continuation_tokens: Annotated[int, Field(ge=5)]
    alternatives: Annotated[int, Field(ge=31)]
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    limits: ExtractionLimits
    gate: Literal["report", "stop"]


class Limit(Section):
    min_top1_agreement: Share
    max_kl_nats: Annotated[float, Field(ge=0)]
    min_stopped: Share
    min_same_answer: Share
    max_tensor_error: Annotated[float, Field(ge=0)] | None


class Limits(Section):
    merged: Limit
    f16: Limit
    q8_0: Limit
    q4_k_m: Limit


class Export(Section):
    forms: list[Literal["merged", "f16", "q8_0", "q4_k_m"]]
    check_prompts: Positive
    answer_prompts: Positive | None
    limits: Limits

    @model_validator(mode="after")
    def _forms_are_distinct(self) -> "Export":
        if len(set(self.forms)) < len(self.forms):
            raise ValueError("export.forms names a form twice")
        return self


class Prompt(Section):
    system: str | None
    template: Name

    @model_validator(mode="after")
    def _template_has_text(self) -> "Prompt":
        if "{text}" not in self.template:
            raise ValueError("prompt.template has no {text}: the row's text would not reach the model")
        return self


class Harness(Section):
    tasks: list[Name]
    cache: Name | None
    few_shot: NotNegative | None
    limit: Positive | None

    @model_validator(mode="after")
    def _tasks_have_datasets(self) -> "Harness":
        if self.tasks and self.cache is None:
            raise ValueError("evaluate.harness.tasks names tasks, but evaluate.harness.cache is null; name the folder of their datasets")
        return self


class Evaluate(Section):
    batch_size: Positive
    max_new_tokens: Positive
    max_free_tokens: NotNegative
    few_shot: NotNegative
    retrieved: NotNegative
    base_prompt: Name
    harness: Harness

    @model_validator(mode="after")
    def _base_prompt_is_fair(self) -> "Evaluate":
        if "{text}" not in self.base_prompt:
            raise ValueError("evaluate.base_prompt has no {text}: the base would be judged without seeing the row")
        return self


Measure = Literal["bits_per_byte", "nats_per_token", "exact_match", "normalised_match", "rouge_l", "chrf", "json_valid", "json_equal"]


class Compare(Section):
    metrics: Literal["auto"] | Annotated[list[Measure], Field(min_length=1)]
    resamples: Annotated[int, Field(ge=1000)]
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    max_forgetting: Share
    gate: Literal["report", "stop"]

    @model_validator(mode="after")
    def _metrics_are_distinct(self) -> "Compare":
        if isinstance(self.metrics, list) and len(set(self.metrics)) < len(self.metrics):
            raise ValueError("compare.metrics names a metric twice")
        return self


class Card(Section):
    name: Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")]
    developed_by: Name | None
    repository: Name | None
    language: Name
    license: Name
    intended_use: Name
    grid_co2_grams_per_kwh: Annotated[float, Field(ge=0)]
    watts: Annotated[float, Field(gt=0)] | None
    price_per_kwh: Annotated[float, Field(ge=0)]
    currency: Name


WarnOrStop = Literal["warn", "stop"]


class RunWatch(Section):
    sample_seconds: Annotated[float, Field(gt=0)] | None
    gradient_norm: WarnOrStop
    throughput: WarnOrStop
    throughput_drop: Annotated[float, Field(gt=0, lt=1)]
    memory_growth: WarnOrStop
    plateau: WarnOrStop
    plateau_steps: Annotated[int, Field(ge=10)]
    validation_rising: WarnOrStop


class Runtime(Section):
    device: Literal["auto", "cpu", "cuda"]
    save_every: Positive
    log_every: Positive
    gpu_memory_gib: Annotated[float, Field(gt=0)] | None
    processes: Literal["auto"] | Positive
    zero_offload: Literal["gpu", "host"] | Name
    watch: RunWatch
