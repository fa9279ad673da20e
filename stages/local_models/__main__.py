"""local_models: models of the user's over the rows, off by default: entities that no pattern finds, and vectors of what rows say.

In: data/clean/rows.parquet, data/general, folders with weights. Out: the rows with entities redacted, the rejected ones, every span by
place and kind, and vectors of rows and evaluation items, by which dedupe finds semantic duplicates and paraphrases. Without a model
the rows are the very file that clean wrote.
"""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stages.core import paths
from stages.core.files import outputs, write_json, write_report
from stages.core.models import device_of
from stages.core.overlap import evaluation_texts
from stages.core.parallel import in_batches
from stages.core.params import Params
from stages.core.progress import progress
from stages.core.records import REJECTED_SCHEMA, SCHEMA, Row, TableWriter, count_rows, iter_rows
from stages.core.redaction import Placeholders
from stages.core.row_texts import answer_text, contents, prompt_text, with_texts
from stages.core.stage import run_stage
from stages.local_models.embedding import EmbeddingModel
from stages.local_models.entities import EntityModel, Span
from stages.local_models.folders import checked

if TYPE_CHECKING:
    from stages.core.params import Entities

BATCH_ROWS = 512  # whose texts are sorted by length together
SHOWN = 10
SPANS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.int64(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
    ]
)


def main(params: Params) -> None:
    """Runs the stage."""
    asked = params.local_models
    chosen = {"entities": asked.entities, "embedding": asked.embedding}
    models = {name: None if its is None else checked(f"local_models.{name}", its.folder, its.sha256) for name, its in chosen.items()}
    device = device_of(params.runtime.device) if any(models.values()) else "cpu"
    rows = count_rows(paths.CLEAN_ROWS)
    found: dict[str, Any] = {"entities": None, "embedding": None}
    with outputs() as place:
        kept = place(paths.LOCAL_ROWS)
        with (
            TableWriter(place(paths.LOCAL_REJECTED), REJECTED_SCHEMA) as rejected,
            TableWriter(place(paths.LOCAL_SPANS), SPANS_SCHEMA) as spans,
        ):
            if asked.entities is None:
                same_file(paths.CLEAN_ROWS, kept)
            else:
                found["entities"] = redact(paths.CLEAN_ROWS, kept, rejected, spans, asked.entities, device)
        left = count_rows(kept)
        dropped = found["entities"]["rejected"] if found["entities"] else 0
        assert rows == left + dropped, "local_models lost or made rows"
        folder = place(paths.LOCAL_VECTORS)
        folder.mkdir()
        write_json(folder / "models.json", models)
        if asked.embedding is not None:
            model = EmbeddingModel(asked.embedding, device)
            write_vectors(kept, paths.GENERAL, folder, model)
            found["embedding"] = {"dimensions": model.dimensions, "texts_longer_than_a_window": model.cut}
        details = {
            "rows_in": rows,
            "rows_out": left,
            "rejected": {"entities": dropped} if dropped else {},
            **{name: None if its is None else {"model": models[name], **its} for name, its in found.items()},
        }
        write_report(place(paths.LOCAL_REPORT), {}, details)


def same_file(source: Path, target: Path) -> None:
    """The same bytes at another place: a second name of the file, or a copy where the file system knows none."""
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copyfile(source, target)


def redact(source: Path, target: Path, rejected: TableWriter, spans: TableWriter, params: "Entities", device: str) -> dict[str, Any]:
    """Finds entities and does with each what is asked for its kind.

    Args:
        source: rows.
        target: for the rows that go on.
        rejected: for those with an entity of a kind to drop; what is not kept is redacted in them too.
        spans: for every entity found.
        params: the section `local_models.entities`.
        device: cpu or cuda.

    Returns:
        The report: `rejected`, by kind `action`, `spans` and `rows`, and the spans that the model is least sure of.
    """
    model = EntityModel(params, device)
    actions = {kind: params.actions.get(kind, params.actions["default"]) for kind in sorted(set(params.labels.values()))}
    counts: dict[str, Counter[str]] = {"spans": Counter(), "rows": Counter()}
    least: list[tuple[float, str, int, Span]] = []
    dropped = 0
    with TableWriter(target, SCHEMA) as kept:
        batches = in_batches(iter_rows(source), BATCH_ROWS)
        for batch in progress(batches, "local_models: entities", count_rows(source), size=len):
            texts = [contents(row) for row in batch]
            found = iter(model.find([text for its in texts for text in its]))
            for row, its in zip(batch, texts, strict=True):
                mine = [next(found) for _ in its]
                told = [(number, span) for number, by_text in enumerate(mine) for span in by_text]
                for number, span in told:
                    spans.write({"id": row.id, **_placed(number, span), "action": actions[span.finding.kind]})
                least = sorted([*least, *((span.score, row.id, number, span) for number, span in told)])[:SHOWN]
                counts["spans"].update(span.finding.kind for _, span in told)
                counts["rows"].update({span.finding.kind for _, span in told})
                changed = replaced(row, mine, actions)
                evidence = [_placed(number, span) for number, span in told if actions[span.finding.kind] == "drop"]
                if evidence:
                    dropped += 1
                    rejected.rejected(changed, "entities", {"found": evidence})
                else:
                    kept.row(changed)
    return {
        "rejected": dropped,
        "kinds": {kind: {"action": action, **{name: count[kind] for name, count in counts.items()}} for kind, action in actions.items()},
        "least_sure": [{"id": name, **_placed(number, span)} for _, name, number, span in least],
    }


def replaced(row: Row, found: list[list[Span]], actions: Mapping[str, str]) -> Row:
    """The row with a placeholder for each entity whose kind is not kept.

    Args:
        row: as clean passed it on.
        found: the spans of each of its texts, in the order of `contents`.
        actions: by kind.

    Returns:
        The row; id and label stay.
    """
    texts = contents(row)
    placeholders = Placeholders(texts)
    hidden = [[span.finding for span in spans if actions[span.finding.kind] != "keep"] for spans in found]
    changed = iter([placeholders.put(text, its) for text, its in zip(texts, hidden, strict=True)])
    return with_texts(row, lambda _: next(changed))


def _placed(number: int, span: Span) -> dict[str, Any]:
    """A span by place and kind, never by value."""
    return {"text": number, "start": span.finding.start, "end": span.finding.end, "kind": span.finding.kind, "score": span.score}


def write_vectors(source: Path, general: Path, folder: Path, model: EmbeddingModel) -> None:
    """Writes the vectors of rows and evaluation items.

    Args:
        source: rows.
        general: the folder of the evaluation items.
        folder: where to write prompts.npy, wholes.npy and answers.npy, [rows, dimensions] float16 in the order of the rows (of a labelled
            row the whole is the prompt, and the answer zero: the label tells more), items.npy, [texts, dimensions] float16, and
            items.json, task and id of each text.
        model: that gives them.
    """
    rows = count_rows(source)
    views = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float16, shape=(rows, model.dimensions))
        for name in ("prompts", "wholes", "answers")
    }
    start = 0
    batches: Iterator[list[Row]] = in_batches(iter_rows(source), BATCH_ROWS)
    for batch in progress(batches, "local_models: embedding", rows, size=len):
        prompts = [prompt_text(row) for row in batch]
        free = [place for place, row in enumerate(batch) if row.label is None]
        answers = [answer_text(batch[place]) for place in free]
        wholes = [f"{prompts[place]}\n{answer}" for place, answer in zip(free, answers, strict=True)]
        vectors = model.vectors([*prompts, *wholes, *answers])
        inside = slice(start, start + len(batch))
        views["prompts"][inside] = views["wholes"][inside] = vectors[: len(batch)]
        views["wholes"][[start + place for place in free]] = vectors[len(batch) : len(batch) + len(free)]
        views["answers"][[start + place for place in free]] = vectors[len(batch) + len(free) :]
        start += len(batch)
    for view in views.values():
        view.flush()
    items = [(task, name, text) for task, name, texts in evaluation_texts(general) for text in texts]
    parts = [model.vectors([text for _, _, text in part]) for part in in_batches(items, BATCH_ROWS)]
    np.save(folder / "items.npy", np.concatenate([np.zeros((0, model.dimensions), dtype=np.float16), *parts]))
    write_json(folder / "items.json", [[task, name] for task, name, _ in items])


if __name__ == "__main__":
    run_stage("local_models", main)
