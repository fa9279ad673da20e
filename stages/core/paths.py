"""Where everything lies, relative to the repository root, each path named once.

dvc.yaml repeats these as deps and outs, and tests/test_contracts.py holds the two together.
"""

from pathlib import Path

PARAMS = Path("params.yaml")
VERSIONS = Path("versions.yaml")
LOCK = Path("requirements.lock")
PIPELINE = Path("dvc.yaml")
SOURCES = Path("data/sources")
DECISIONS = Path("data/decisions.csv")
TEMPLATES = Path("templates")  # chat templates that tokenize.chat_template may name

BASE = Path("models/base.json")
ADAPTER = Path("models/adapter")
EXPORT = Path("models/export")

RAW_ROWS = Path("data/raw/rows.parquet")
RAW_REJECTED = Path("data/raw/rejected.parquet")
GENERAL = Path("data/general")  # one TASK.jsonl each
REHEARSAL = Path("data/rehearsal/rows.parquet")  # general items that are asked of no model, as conversations
CLEAN_ROWS = Path("data/clean/rows.parquet")
CLEAN_REJECTED = Path("data/clean/rejected.parquet")
LOCAL_ROWS = Path("data/local_models/rows.parquet")
LOCAL_REJECTED = Path("data/local_models/rejected.parquet")
LOCAL_SPANS = Path("data/local_models/spans.parquet")  # id, text, start, end, kind, score, action: what the entity model found
LOCAL_VECTORS = Path("data/local_models/vectors")  # models.json, and with an embedding model items.json and the arrays *.npy
DEDUPE_ROWS = Path("data/dedupe/rows.parquet")
DEDUPE_REJECTED = Path("data/dedupe/rejected.parquet")
LABEL_ROWS = Path("data/label_check/rows.parquet")
LABEL_REJECTED = Path("data/label_check/rejected.parquet")
LABEL_SUSPECTS = Path("data/label_check/suspects.parquet")
SUSPICION_ROWS = Path("data/suspicion/rows.parquet")
SUSPICION_REJECTED = Path("data/suspicion/rejected.parquet")
SUSPICION_SUSPECTS = Path("data/suspicion/suspects.parquet")
SUSPICION_TRIGGERS = Path("data/suspicion/triggers.json")  # a list: trigger, kind, rows, predicts, score; the worst first
SPLIT_TRAIN = Path("data/split/train.parquet")
SPLIT_VALIDATION = Path("data/split/validation.parquet")
SPLIT_TEST = Path("data/split/test.parquet")
SPLIT_REJECTED = Path("data/split/rejected.parquet")
SPLIT_OVERLAP = Path("data/split/overlap.parquet")  # evaluation items that share words with a training row: task, item_id, words, train_id
TOKENIZED_TRAIN = Path("data/tokenized/train.parquet")
TOKENIZED_VALIDATION = Path("data/tokenized/validation.parquet")
CANARIES = Path("data/tokenized/canaries.parquet")  # the planted rows as conversations, none by default
TOKENIZED_REJECTED = Path("data/tokenized/rejected.parquet")
TOKENIZER = Path("data/tokenized/tokenizer")
TRAINED_STEPS = Path("data/trained/steps.parquet")  # id, epoch, step, micro_batch, tokens: which rows each step was made from

ROW_LOSSES = {"base": Path("data/row_losses/base.parquet"), "tuned": Path("data/row_losses/tuned.parquet")}  # one row a training row

PROBES = Path("data/probe/probes.parquet")  # one row a suspected trigger and prompt

EXTRACTION_SPANS = Path("data/extraction/spans.parquet")  # one row a text or answer that was to be reproduced
EXTRACTION_ROWS = Path("data/extraction/rows.parquet")  # id, learnt, base_loss, tuned_loss

EVALUATION = {"base": Path("data/evaluation/base.parquet"), "tuned": Path("data/evaluation/tuned.parquet")}  # one row an item
FORMS = Path("data/evaluation/forms.parquet")  # what each shipped form answered to test rows

REPORTS = Path("reports")
FETCH_DATA_REPORT = REPORTS / "fetch_data.json"
FETCH_GENERAL_REPORT = REPORTS / "fetch_general.json"
CLEAN_REPORT = REPORTS / "clean.json"
LOCAL_REPORT = REPORTS / "local_models.json"
DEDUPE_REPORT = REPORTS / "dedupe.json"
LABEL_REPORT = REPORTS / "label_check.json"
SUSPICION_REPORT = REPORTS / "suspicion.json"
SPLIT_REPORT = REPORTS / "split.json"
TOKENIZE_REPORT = REPORTS / "tokenize.json"
TRAIN_REPORT = REPORTS / "train.json"
TRAIN_MACHINE = REPORTS / "train_machine.json"  # seconds, tokens/s, memory, watts: nothing that is compared by bytes
TRAIN_CURVE = REPORTS / "curves/train.csv"  # step, loss, grad_norm, learning_rate
VALIDATION_CURVE = REPORTS / "curves/validation.csv"  # step, loss
SPEED_CURVE = REPORTS / "curves/speed.csv"  # step, tokens_per_second, ceiling_share, memory_bytes, allocated_bytes
EXPORT_REPORT = REPORTS / "export.json"
EVALUATE_REPORT = {"base": REPORTS / "evaluate_base.json", "tuned": REPORTS / "evaluate_tuned.json"}
EVALUATE_MACHINE = {"base": REPORTS / "evaluate_base_machine.json", "tuned": REPORTS / "evaluate_tuned_machine.json"}  # seconds
ROW_LOSSES_REPORT = {"base": REPORTS / "row_losses_base.json", "tuned": REPORTS / "row_losses_tuned.json"}
PROBE_REPORT = REPORTS / "probe.json"
EXTRACTION_REPORT = REPORTS / "extraction.json"
COMPARE_REPORT = REPORTS / "compare.json"
CARD = REPORTS / "card/README.md"
PROVENANCE = REPORTS / "card/provenance.json"
BOM = REPORTS / "card/bom.cdx.json"  # CycloneDX
HTML_REPORT = REPORTS / "report.html"
