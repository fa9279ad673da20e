"""Near-duplicates planted among real texts, how many of them dedupe finds, and its speed beside the bare library's on the same signatures.

In: the licence notices that params.yaml names. Out: tables (exit code 1: a figure is missed). Run: python -m benchmarks.data_dedupe
[quality|speed|overlap]. Similarities of planted pairs are computed here by sets of words, without the stage's hashes.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.data_rows import made_rows
from stages.core import paths
from stages.core.overlap import RunIndex
from stages.core.packages import fetch_wheel
from stages.core.params import Dedupe, Params, load_params
from stages.core.records import Message, Row, read_rejected, read_rows, with_ids, write_rows
from stages.core.words import words
from stages.dedupe.clusters import Buckets, Clusters, Pool, find_clusters, shared_prompts
from stages.dedupe.facts import Sets, shingled
from stages.dedupe.signatures import PERMUTATIONS, band_hashes, rows_per_band, signatures
from stages.fetch_data.licences import read_licences
from stages.split.overlap import row_words

RECALL, PRECISION, RATIO = 0.97, 0.99, 1.5
LEAST = 0.8  # Jaccard similarity of a planted pair
KINDS = ("same label", "other label", "both near", "other answer", "long answer near")
CONFLICTS = ("other label", "other answer")
SPEED_ROWS = 100_000
BARE = "rensa: its deduplicator, similarity estimated, the first of alike stays"
OURS = "dedupe: pairs verified exactly, clusters, the first of alike stays"
T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """Two planted rows: `kind` is one of KINDS, `similarity` that of the texts that are near."""

    kind: str
    one: str
    other: str
    similarity: float


def near(one: str, other: str, shingle_words: int) -> float:
    """The Jaccard similarity of two texts' word shingles."""
    first, second = (_shingles(words(text), shingle_words) for text in (one, other))
    return len(first & second) / len(first | second)


def _shingles(sequence: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(sequence[start : start + length]) for start in range(max(1, len(sequence) - length + 1))}


def changed(text: str, rng: random.Random, shingle_words: int) -> str | None:
    """The text with words replaced, left out, put in or moved, at a similarity of LEAST to 1; None where chance does not give that."""
    for _ in range(20):
        sequence = text.split()
        for _ in range(rng.randint(1, max(1, len(sequence) // 25))):
            place = rng.randrange(len(sequence))
            sequence[place : place + rng.randint(0, 1)] = rng.choices(["other", "changed", "new", *sequence], k=rng.randint(0, 1))
        made = " ".join(sequence)
        if sequence and LEAST <= near(text, made, shingle_words) < 1:
            return made
    return None


def planted(texts: list[str], seed: int, shingle_words: int) -> tuple[list[Row], list[Pair]]:
    """Rows of which some are planted near-duplicates of others, in equal parts of KINDS, among as many that are not.

    Args:
        texts: of at least 12 words each, none the near-duplicate of another by intent.
        seed: equal seeds, equal rows.
        shingle_words: of the similarity.

    Returns:
        The rows in a random order, and the planted pairs.
    """
    rng = random.Random(seed)
    rows: list[Row] = []
    pairs: list[tuple[str, int, int, float]] = []
    pieces = iter(texts)
    for number, (text, answer, unlike) in enumerate(zip(pieces, pieces, pieces, strict=False)):
        kind = KINDS[number // 2 % len(KINDS)]
        made = changed(text, rng, shingle_words)
        again = changed(answer, rng, shingle_words)
        first, second = len(rows), len(rows) + 1
        if number % 2 or made is None or again is None:
            rows.append(_row(text, answer, None) if number % 3 else _row(text, None, "A"))
            continue
        if kind in ("same label", "other label"):
            rows += [_row(text, None, "A"), _row(made, None, "A" if kind == "same label" else "B")]
            pairs.append((kind, first, second, near(text, made, shingle_words)))
        elif kind == "long answer near":  # the prompts are three words of which one differs: only the whole rows are alike
            rows += [_row(f"Go on {number}a", answer, None), _row(f"Go on {number}b", again, None)]
            alike = near(f"Go on {number}a\n{answer}", f"Go on {number}b\n{again}", shingle_words)
            if alike >= LEAST:
                pairs.append((kind, first, second, alike))
        else:
            rows += [_row(text, answer, None), _row(made, again if kind == "both near" else unlike, None)]
            pairs.append((kind, first, second, near(text, made, shingle_words)))
    named = list(with_ids(rows))
    return rng.sample(named, len(named)), [Pair(kind, named[one].id, named[other].id, alike) for kind, one, other, alike in pairs]


def _row(prompt: str, answer: str | None, label: str | None) -> Row:
    messages: tuple[Message, ...] = ({"role": "user", "content": prompt}, {"role": "assistant", "content": label or answer or ""})
    return Row("", messages, None, None, label, "planted", "1", None)


@dataclass(frozen=True)
class Figures:
    """What dedupe made of planted rows.

    Attributes:
        recall: the share of the pairs of each kind that are in one cluster, or of whose rows one is gone (a row may repeat a third one,
            and what is left is compared with rows that stay).
        precision: the share of the dropped near-duplicates that are as near to the kept row as the threshold asks.
        dropped: rows that were dropped as near-duplicates.
        lost: rows of conflicting pairs that were dropped though nothing else in the data repeats them.
    """

    recall: dict[str, float]
    precision: float
    dropped: int
    lost: int


def figures(rows: list[Row], pairs: list[Pair], params: Dedupe, seed: int) -> Figures:
    """Runs dedupe on the rows and judges it by similarities of its own."""
    stage = import_module("stages.dedupe.__main__")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "source.parquet", rows)
        stage.dedupe(folder / "source.parquet", folder / "none", params, seed, lambda path: folder / path.name)
        kept = {row.id: row for row in read_rows(folder / paths.DEDUPE_ROWS.name)}
        rejected = read_rejected(folder / paths.DEDUPE_REJECTED.name)
    cluster = {row.id: row.cluster for row in kept.values()} | {item.row.id: item.row.cluster for item in rejected}
    found: dict[str, list[bool]] = {}
    for pair in pairs:
        together = cluster[pair.one] == cluster[pair.other]
        found.setdefault(pair.kind, []).append(together or not {pair.one, pair.other} <= kept.keys())
    dropped = [item for item in rejected if item.rule == "near_duplicate"]
    right = [_alike(item.row, kept[item.evidence["kept"]], params) for item in dropped]
    partner = {pair.one: pair.other for pair in pairs if pair.kind in CONFLICTS} | {p.other: p.one for p in pairs if p.kind in CONFLICTS}
    lost = sum(partner.get(item.row.id) == item.evidence["kept"] for item in dropped)
    return Figures(
        {kind: sum(hits) / len(hits) for kind, hits in sorted(found.items())}, sum(right) / max(1, len(right)), len(dropped), lost
    )


def _alike(one: Row, other: Row, params: Dedupe) -> bool:
    texts = [row.text if row.label is not None else f"{row.text}\n{row.answer}" for row in (one, other)]
    return one.label == other.label and near(*texts, params.shingle_words) >= params.near_threshold


def quality(params: Params) -> bool:
    """Prints recall and precision for each seed; whether all are reached."""
    licences = params.data.licences.model_copy(update={"max_words": 120})
    rows, _ = read_licences(fetch_wheel(licences.package, licences.version, licences.sha256), licences)
    texts = [row.text for row in rows if len(row.text.split()) >= 12]
    print(f"{len(texts)} licence notices of 12 to 120 words, near_threshold {params.dedupe.near_threshold:g}\n")
    print(f"| seed | rows | pairs | {' | '.join(KINDS)} | recall | dropped | precision | conflicts lost |")
    print("|---" * (7 + len(KINDS)) + "|")
    reached = True
    for seed in range(3):
        chosen = random.Random(seed).sample(texts, len(texts))
        made, pairs = planted(chosen, seed, params.dedupe.shingle_words)
        found = figures(made, pairs, params.dedupe, params.seed)
        kinds = Counter(pair.kind for pair in pairs)
        recall = sum(found.recall[kind] * count for kind, count in kinds.items()) / len(pairs)
        cells = [f"{found.recall[kind]:.4f}" for kind in KINDS]
        told = [f"{recall:.4f}", str(found.dropped), f"{found.precision:.4f}", str(found.lost)]
        print(f"| {' | '.join([str(seed), str(len(made)), str(len(pairs)), *cells, *told])} |")
        reached &= min(found.recall.values()) >= RECALL and found.precision >= PRECISION and not found.lost
    print(f"\ntarget: recall of every kind >= {RECALL}, precision >= {PRECISION}, no conflict lost: {'reached' if reached else 'missed'}")
    return reached


def speed(params: Params, count: int) -> bool:
    """Prints seconds of dedupe's and of rensa's own deduplication from the same signatures; whether the ratio is reached."""
    from rensa import RMinHash, RMinHashDeduplicator, RMinHashLSH

    counts: Counter[str] = Counter()
    texts = list(dict.fromkeys(record["text"] for record in made_rows(count, params.seed, counts)))  # exact duplicates are another pass's
    shingles, sizes = shingled([words(text) for text in texts], params.dedupe.shingle_words)
    ends = np.cumsum(sizes)
    tokens = [[value.tobytes() for value in shingles[end - size : end]] for end, size in zip(ends, sizes, strict=True)]
    seed, threshold = params.seed, params.dedupe.near_threshold
    told: list[tuple[str, float]] = []

    def timed(name: str, call: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = call()
        told.append((name, time.perf_counter() - start))
        return result

    theirs = timed("rensa: signatures of sets of bytes", lambda: RMinHash.from_token_sets(tokens, PERMUTATIONS, seed))
    wide = shingles.astype(np.uint64)
    offsets = np.concatenate([[0], ends]).astype(np.uint64)
    matrix = timed(
        "rensa: signatures of one array", lambda: RMinHash.digest_matrix_from_flat_token_hashes(wide, offsets, PERMUTATIONS, seed)
    )
    timed("dedupe: signatures of one array", lambda: signatures(shingles, sizes, seed))
    same = np.array([one.digest() for one in theirs], dtype=np.uint32)

    def bare() -> list[bool]:
        library = RMinHashDeduplicator(threshold, PERMUTATIONS, True, 16, seed)
        added: list[bool] = library.add_pairs(list(zip(names, theirs, strict=True)))
        return added

    def ours() -> Clusters:
        sets = Sets(shingles, ends - sizes, sizes)
        nothing = np.ones(len(sizes), dtype=np.uint64)
        common, _ = shared_prompts(np.zeros(len(sizes), dtype=np.uint64))
        buckets = Buckets([(band_hashes(same, rows_per_band(threshold)), ~common)])
        met = buckets.rows()
        mine = sets.taken(met)
        return find_clusters(buckets, met, Pool(mine, mine, mine, nothing[met], common[met], threshold), keep=False)

    names = [str(number) for number in range(len(sizes))]
    added = timed(BARE, bare)
    found = timed(OURS, ours)
    library = RMinHashLSH(threshold, PERMUTATIONS, 16)
    timed("rensa: flags of rows that share a bucket, no pairs", lambda: library.query_duplicate_flags_matrix_one_shot(matrix))
    print(f"{len(sizes):,} rows, {len(shingles) / len(sizes):.0f} shingles each, {PERMUTATIONS} permutations\n")
    print("| what | seconds | rows/s |\n|---|---|---|")
    for name, seconds in told:
        print(f"| {name} | {seconds:.2f} | {len(sizes) / seconds:,.0f} |")
    times = dict(told)
    ratio = times[OURS] / times[BARE]
    gone = {number for number, flag in enumerate(added) if not flag}
    print(f"\ndropped: rensa {len(gone):,}, dedupe {len(found.repeats):,}, both {len(gone & found.repeats.keys()):,}")
    print(f"from the same signatures dedupe takes {ratio:.2f} x rensa's time; target <= {RATIO}")
    return ratio <= RATIO


def overlap(params: Params) -> None:
    """Prints what rejecting training rows that share words with test rows would do to this checkout's data."""
    from stages.compare.classical import classical_answers
    from stages.core.mcnemar import mcnemar

    train, test = read_rows(paths.SPLIT_TRAIN), read_rows(paths.SPLIT_TEST)
    pool = [item.row for item in read_rejected(paths.SPLIT_REJECTED) if item.rule == "over_max_train"]
    for name, rows in ((f"{len(train)}", train), (f"{len(train) + len(pool)}, no cap", [*train, *pool])):
        before = classical_answers(rows, test)
        dirty = set(RunIndex([row_words(row) for row in rows], [0] * len(rows), 8).longest([row_words(row) for row in test]))
        print(f"\n{name} training rows; {len(dirty)} of {len(test)} test rows share 8 words or more with one\n")
        print("| rejected | rows | all test rows | share no 8 words | the others | won | lost | p |\n|---|---|---|---|---|---|---|---|")
        for length in (None, 13, 8):
            index = None if length is None else RunIndex([row_words(row) for row in test], [0] * len(test), length)
            gone = set() if index is None else set(index.longest([row_words(row) for row in rows]))
            after = classical_answers([row for number, row in enumerate(rows) if number not in gone], test)
            right = [(before[row.id] == row.answer, after[row.id] == row.answer) for row in test]
            parts = [right, [r for n, r in enumerate(right) if n not in dirty], [r for n, r in enumerate(right) if n in dirty]]
            shares = [f"{sum(new for _, new in part) / len(part):.3f}" for part in parts]
            won, lost = sum(new and not old for old, new in right), sum(old and not new for old, new in right)
            print(f"| {length or 'none'} | {len(gone)} | {' | '.join(shares)} | {won} | {lost} | {mcnemar(won, lost):.2f} |")


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_dedupe", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["quality", "speed", "overlap"], help="quality and speed if left out")
    parser.add_argument("--rows", type=int, default=SPEED_ROWS, help=f"of speed ({SPEED_ROWS})")
    args = parser.parse_args()
    params = load_params()
    if args.what == "overlap":
        return overlap(params)
    reached = args.what == "speed" or quality(params)
    if args.what != "quality":
        print()
        reached &= speed(params, args.rows)
    sys.exit(not reached)


if __name__ == "__main__":
    main()
