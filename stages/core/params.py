"""The one schema of params.yaml: typed, frozen, without defaults; an unknown key is an error that names the nearest one."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.core import licences, paths
from stages.core.errors import UserError
from stages.core.params_model import (
    Canaries,
    Card,
    Compare,
    Evaluate,
    Export,
    Extraction,
    Model,
    Name,
    NotNegative,
    Numerics,
    OpenShare,
    Positive,
    Probe,
    Prompt,
    RowLosses,
    Runtime,
    Section,
    Sha256,
    Share,
    Train,
)


class Licences(Section):
    package: Name
    version: Name
    sha256: Sha256
    target: Literal["category", "key"]
    min_words: Positive
    max_words: Positive

    @model_validator(mode="after")
    def _words_ordered(self) -> "Licences":
        if self.min_words > self.max_words:
            raise ValueError(f"data.licences.min_words ({self.min_words}) is above max_words ({self.max_words})")
        return self


# the names that data.files.columns may give a user's column: those of stages/fetch_data/formats.py
Column = Literal[
    "chosen",
    "completion",
    "conversations",
    "group",
    "input",
    "instruction",
    "label",
    "messages",
    "output",
    "prompt",
    "rejected",
    "system",
    "text",
]


class Files(Section):
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "labelled", "preference"]
    columns: dict[Column, Name]
    bad_rows: Literal["stop", "reject"]
    licenses: dict[Name, Name]

    @model_validator(mode="after")
    def _licenses_are_known(self) -> "Files":
        for pattern, licence in self.licenses.items():
            if (problem := licences.mistyped(licence)) is not None:
                raise ValueError(f"data.files.licenses: {licence} of {pattern} {problem}")
        return self


class Data(Section):
    source: Literal["licences", "files"]
    licences: Licences
    files: Files
    max_rows: Positive | None


class GeneralItems(Section):
    arc_easy: NotNegative | None
    hellaswag: NotNegative | None
    openbookqa: NotNegative | None
    lambada: NotNegative | None


class General(Section):
    package: Name
    version: Name
    sha256: Sha256
    items: GeneralItems


Action = Literal["drop", "redact", "keep"]
# what stages/clean finds; a test holds these names to what its detectors and its planted set name
SecretKind = Literal[
    "default",
    "anthropic_key",
    "assigned_secret",
    "aws_access_key",
    "azure_key",
    "chat_token",
    "github_token",
    "gitlab_token",
    "google_key",
    "hugging_face_token",
    "jwt",
    "mail_service_key",
    "openai_key",
    "package_token",
    "password_in_url",
    "private_key",
    "provider_token",
    "slack_token",
    "stripe_key",
]
PersonalKind = Literal[
    "default",
    "account",
    "br_cpf",
    "card",
    "ch_ahv",
    "de_tax_id",
    "email",
    "es_dni",
    "fr_nir",
    "iban",
    "ip",
    "it_codice_fiscale",
    "nl_bsn",
    "phone",
    "uk_nino",
    "us_ssn",
    "wallet",
]
NotNegativeNumber = Annotated[float, Field(ge=0)]


class Clean(Section):
    min_characters: NotNegative
    max_characters: Positive
    languages: list[Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}$")]]
    min_language_characters: NotNegative
    secrets: dict[SecretKind, Action]
    personal_data: dict[PersonalKind, Action]
    max_repetition: Share | None
    max_truncation: Share | None
    max_refusal: Share | None
    max_boilerplate: Share | None
    max_mojibake: NotNegativeNumber | None
    max_markup: NotNegativeNumber | None
    max_unclosed_fences: NotNegative | None
    min_length_ratio: NotNegativeNumber | None
    max_length_ratio: NotNegativeNumber | None
    max_foreign: Share | None

    @model_validator(mode="after")
    def _lengths_ordered(self) -> "Clean":
        if self.min_characters > self.max_characters:
            raise ValueError(f"clean.min_characters ({self.min_characters}) is above max_characters ({self.max_characters})")
        return self

    @model_validator(mode="after")
    def _every_kind_has_an_action(self) -> "Clean":
        for name, actions in (("secrets", set(self.secrets)), ("personal_data", set(self.personal_data))):
            if "default" not in actions:
                raise ValueError(f"clean.{name} has no default; add it (drop, redact or keep), and kinds with another action beside it")
        return self


class Entities(Section):
    folder: Name
    sha256: Sha256 | None
    labels: dict[Name, Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_]*$")]]
    actions: dict[Name, Action]
    min_score: Share

    @model_validator(mode="after")
    def _actions_are_of_kinds(self) -> "Entities":
        if not self.labels:
            raise ValueError("local_models.entities.labels is empty; map the model's labels to kinds, e.g. {PER: name, LOC: address}")
        if "default" not in self.actions:
            raise ValueError("local_models.entities.actions has no default; add it (drop, redact or keep)")
        if unknown := sorted(set(self.actions) - {"default", *self.labels.values()}):
            kinds = ", ".join(sorted(set(self.labels.values())))
            raise ValueError(f"local_models.entities.actions names {unknown[0]}, which is no kind of its labels ({kinds})")
        return self


class Embedding(Section):
    folder: Name
    sha256: Sha256 | None
    pooling: Literal["mean", "cls"]


class LocalModels(Section):
    entities: Entities | None
    embedding: Embedding | None


class Dedupe(Section):
    near_threshold: Annotated[float, Field(gt=0, le=1)]
    shingle_words: Positive
    keep_near_duplicates: bool
    eval_ngram: Annotated[int, Field(ge=5)]
    semantic_threshold: Annotated[float, Field(gt=0, le=1)] | None
    paraphrase_threshold: Annotated[float, Field(gt=0, le=1)] | None


class LabelCheck(Section):
    action: Literal["report", "drop"]
    max_drop_share: Share
    folds: Annotated[int, Field(ge=2, le=20)]
    min_odds: Annotated[float, Field(gt=1)]


class SourceTrust(Section):
    trust: Literal["trusted", "known", "untrusted"]
    max_rows: Positive | None


class Suspicion(Section):
    action: Literal["report", "drop"]
    min_score: Annotated[float, Field(gt=0, le=1)]
    max_drop_share: Share
    sources: dict[Name, SourceTrust]


class Split(Section):
    validation: OpenShare
    test: Annotated[float, Field(gt=0, lt=1)]
    max_train: Positive | None
    max_validation: NotNegative | None
    max_test: Positive | None
    test_ngram: Annotated[int, Field(ge=5)] | None

    @model_validator(mode="after")
    def _shares_leave_training(self) -> "Split":
        if self.validation + self.test >= 1:
            raise ValueError(f"split.validation ({self.validation}) and split.test ({self.test}) leave nothing to train on")
        return self


class Tokenize(Section):
    chat_template: Name | None
    max_tokens: Annotated[int, Field(ge=8)]
    too_long: Literal["drop", "truncate", "split", "raise"]
    new_tokens: list[Name]
    rehearsal: Annotated[float, Field(ge=0, le=1)]
    canaries: Canaries


class Params(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    model: Model
    data: Data
    general: General
    clean: Clean
    local_models: LocalModels
    dedupe: Dedupe
    label_check: LabelCheck
    suspicion: Suspicion
    split: Split
    prompt: Prompt
    tokenize: Tokenize
    numerics: Numerics
    train: Train
    row_losses: RowLosses
    probe: Probe
    export: Export
    evaluate: Evaluate
    extraction: Extraction
    compare: Compare
    card: Card
    runtime: Runtime

    @model_validator(mode="after")
    def _sections_agree(self) -> "Params":
        if self.train.early_stop is not None and not (self.split.validation and self.split.max_validation != 0):
            raise ValueError("train.early_stop is set, but split.validation or split.max_validation leaves no validation rows to stop on")
        if self.train.micro_batch_tokens != "auto" and self.train.micro_batch_tokens < self.tokenize.max_tokens:
            raise ValueError(
                f"train.micro_batch_tokens ({self.train.micro_batch_tokens}) is below tokenize.max_tokens "
                f"({self.tokenize.max_tokens}): the longest row would fit no forward pass"
            )
        if self.compare.metrics != "auto" and not self.evaluate.max_free_tokens:
            weighed = ("exact_match", "bits_per_byte", "nats_per_token")  # the first of labels
            if written := [name for name in self.compare.metrics if name not in weighed]:
                raise ValueError(f"compare.metrics names {written[0]}, but evaluate.max_free_tokens is 0: no answer is written; raise it")
        if self.train.optimizer != "adamw" and self.runtime.device == "cpu":
            raise ValueError(f"train.optimizer {self.train.optimizer} needs CUDA, but runtime.device is cpu; use adamw")
        if self.train.init in ("pissa", "olora") and self.numerics.quantization == "nf4":
            reason = f"train.init {self.train.init} changes the base's weights, which NF4 holds fixed"
            raise ValueError(f"{reason}; set numerics.quantization: none")
        if self.train.parallel == "zero3" and self.numerics.quantization == "nf4":
            raise ValueError(
                "train.parallel is zero3, but numerics.quantization is nf4: DeepSpeed cannot split 4-bit weights and would load the whole "
                "model on each GPU; take fsdp, which splits them, or quantization: none"
            )
        return self

    @model_validator(mode="after")
    def _licences_agree(self) -> "Params":
        parts = [("the base", self.model.package.license)] if self.model.source == "package" else []
        if self.data.source == "files":
            parts += [(f"the data {pattern}", licence) for pattern, licence in self.data.files.licenses.items()]
        if (problem := licences.contradiction(parts, self.card.license)) is not None:
            raise ValueError(problem)
        return self


def load_params(path: Path = paths.PARAMS) -> Params:
    """Reads and checks params.yaml.

    Args:
        path: the file.

    Returns:
        The parameters.

    Raises:
        UserError: the file is missing, is no YAML 1.2, or breaks the schema; the sentence names each key at fault.
    """
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run from the repository's root") from None
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {number} holds the byte 0x{error.object[error.start]:02x}, which is no UTF-8; save the file as UTF-8"
        ) from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line} is not valid YAML: {getattr(error, 'problem', error)}; mend the line") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds {type(raw).__name__}, expected a mapping of sections")
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        problems = [_explain(dict(problem), raw) for problem in error.errors()]
        raise UserError(f"{path}: " + "; ".join(problems)) from None


def _explain(problem: dict[str, Any], raw: dict[str, Any]) -> str:
    """One pydantic error as: key, finding, expectation, remedy."""
    location = [part for part in problem["loc"] if isinstance(part, int) or _is_key(part)]
    key = ".".join(str(part) for part in location)
    kind, found, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        known = _fields_at(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        remedy = f"did you mean {'.'.join([*map(str, location[:-1]), near[0]])}?" if near else f"known here: {', '.join(known)}"
        return f"{key} is not a parameter; {remedy}"
    if kind == "missing":
        return f"{key} is missing, and there are no defaults; add it (see the committed params.yaml)"
    if kind == "value_error":
        return str(context["error"])
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("a valid ").replace("String should", "a text that should")
    if isinstance(found, str) and kind in ("float_type", "int_type"):
        try:
            number = float(found)
            remedy = f"; write it without quotes and with a dot: {number!r}" if kind == "float_type" else "; write it without quotes"
        except ValueError:
            remedy = "; write a number"
        return f"{key} is the text {found!r}, expected {expected}{remedy}"
    return f"{key} is {found!r}, expected {expected}"


def _is_key(part: str) -> bool:
    """Whether a part of pydantic's location is a key of the file and not the name of a union's member."""
    members = ("constrained", "literal", "list", "function")
    return part.isidentifier() and part not in {"str", "int", "float", "bool"} and not part.startswith(members)


def _fields_at(location: list[Any]) -> list[str]:
    """The names a section may hold, at a path of section names."""
    section: type[BaseModel] = Params
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        section = annotation
    return list(section.model_fields)
