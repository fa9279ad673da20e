"""Several processes train as one: the same course, adapter and decisions, whatever their number. The processes are real, over gloo."""

import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from stages.core.batches import TokenRow
from stages.core.errors import UserError
from stages.core.models import digests, load_base
from stages.core.params import Numerics
from stages.core.streaming import decoder_layers, stream_base
from stages.train import adapter
from stages.train.batches import deal
from stages.train.dry_run import rehearse
from stages.train.ranks import Ranks, is_lost, join
from stages.train.sft import Training
from stages.train.slices import Slices
from tests import tiny, trainable

STEPS = {"epochs": 2.0, "learning_rate": 1e-2, "eval_every": 2, "effective_batch": 5}
# 27 steps: enough for the median of 20 losses
OFTEN = {"rows": 12, "epochs": 9.0, "effective_batch": 4, "eval_every": 20, "runtime": {"save_every": 4}}
RULES = {"non_finite": "roll_back", "spike": "roll_back", "spike_score": 3.0}
BLAMED = 22
# what each case changes; the processes of a number train one after the other
CASES: dict[str, dict[str, Any]] = {
    "plain": {"dropout": 0.2},
    "fused": {"kernels": "fused", "neftune_alpha": 5.0},
    "fsdp": {"parallel": "fsdp", "recompute": 1, "dropout": 0.2, "batching": "pack"},
    "fsdp_fused": {"parallel": "fsdp", "kernels": "fused"},
    "room": {"dropout": 0.2},
    "fsdp_room": {"parallel": "fsdp"},
    "sequence": {"parallel": "sequence", "dropout": 0.2, "recompute": 1, "batching": "pack"},
    "sequence_fused": {"parallel": "sequence", "kernels": "fused", "recompute": 2, "neftune_alpha": 5.0},
    "sequence_room": {"parallel": "sequence", "recompute": 2, "neftune_alpha": 5.0},
    "sequence_fused_room": {"parallel": "sequence", "kernels": "fused", "recompute": 2},
    "early": {"early_stop": 1, "learning_rate": 0.05, "batching": "pack"},
    "rows_at_fault": {**OFTEN, "watch": RULES},
    "update_at_fault": {**OFTEN, "dropout": 0.1, "parallel": "fsdp", "watch": RULES},
}


def cases(count: int) -> list[str]:
    """What is trained by so many processes."""
    return list(CASES) if count == 2 else ["plain", "fsdp", "sequence", "sequence_fused"]


def trained(base: Path, root: Path, case: str, ranks: Ranks | None) -> dict[str, Any]:
    """One training of a case: its course and adapter."""
    training = trainable.training(base, root, ranks=ranks, **{"rows": 18, **STEPS, **CASES[case]})
    rehearse(training)
    plant(training, case)
    if case.endswith("room") and ranks is not None and ranks.rank == 1:
        if training.fused is not None:
            crowd(training.fused.decoder[1])
        decoder_layers(training.model)[2].register_forward_hook(crowded)
    reason = training.fit()
    state = training.state
    course = [point[name] for point in state.train for name in ("loss", "grad_norm")]
    return {
        "reason": reason,
        "course": course,
        "validation": [point["loss"] for point in state.validation],
        "shrunk": [(level["work"], level["step"], level["micro_batch_tokens"]) for level in state.shrunk],
        "left_out": state.left_out,
        "events": [(event["step"], event["rule"], event["action"]) for event in state.events],
        "adapter": {name: tensor.tolist() for name, tensor in adapter.copied(training.parameters).items()},
    }


def plant(training: Training, case: str) -> None:
    """Puts faults into a training: a row, on whichever rank, whose loss jumps and one whose loss is no number; an update that wrecks."""
    if case == "rows_at_fault":
        summed = training.plain.summed_loss
        faults = {BLAMED: 20.0, BLAMED + 3: torch.nan}

        def planted(rows: Sequence[TokenRow], **named: Any) -> torch.Tensor:
            factor = faults.get(training.state.step, 1.0) if training.model.training else 1.0
            there = factor != 1 and training.rows[training.plan[training.state.step].rows[0]] in rows
            return summed(rows, **named) * (factor if there else 1)

        training.plain.summed_loss = planted  # type: ignore[method-assign]
    if case == "update_at_fault":
        plain = training.optimizer.step

        def step(*arguments: Any, **named: Any) -> Any:
            done = plain(*arguments, **named)
            if training.state.step == BLAMED - 1:
                generator = torch.Generator().manual_seed(0)
                with torch.no_grad():
                    for parameter in training.parameters.values():
                        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=30)
            return done

        training.optimizer.step = step  # type: ignore[method-assign]


def crowded(module: Any, inputs: Any, output: torch.Tensor) -> None:
    """A layer that finds no memory for more than 50 tokens: without gradients in its forward, else in its backward."""

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    if output.shape[0] * output.shape[1] > 50:
        output.register_hook(fail) if output.requires_grad else fail()


def crowd(layer: Any) -> None:
    """Has a layer of the fused path find no memory for more than 50 tokens in the backward of its MLP."""
    backward = layer.mlp_backward

    def fail(grad: torch.Tensor, *given: Any) -> list[torch.Tensor]:
        if len(grad) > 50:
            raise torch.OutOfMemoryError("CUDA out of memory")
        found: list[torch.Tensor] = backward(grad, *given)
        return found

    layer.mlp_backward = fail


def work(rank: int, count: int, base: Path, out: Path) -> None:
    """What a rank does in these tests."""
    torch.set_num_threads(1)
    import os

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LUTHIER_STORE": str(out / "store"), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = join("cpu")
    for case in cases(count):
        found = trained(base, out / case, case, ranks)
        (out / f"{case}-{rank}.json").write_text(json.dumps(found))
    if count == 2:
        (out / f"ended-{rank}.json").write_text(json.dumps(ended(base, out / "ended", ranks)))


def ended(base: Path, root: Path, ranks: Ranks) -> dict[str, Any]:
    """How a training ends on this rank when another finds no memory for its update: it asks for a pebibyte, which no machine has."""
    training = trainable.training(base, root, ranks=ranks, **STEPS)
    if ranks.rank == 1:
        training.optimizer.register_step_pre_hook(lambda *_: torch.empty(2**50, dtype=torch.uint8) and None)
    try:
        training.fit()
    except (UserError, RuntimeError) as error:
        lost = isinstance(error, RuntimeError) and is_lost(error)
        return {"said": str(error), "lost": lost, "adapter": {}, "course": []}
    raise AssertionError("it went on")


@pytest.fixture(scope="module")
def courses(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """What every rank found, by the number of ranks and the case."""
    torch.set_num_threads(1)
    base = tiny.make_base(tmp_path_factory.mktemp("base"), layers=5)  # of which two are whole at a time
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    spawn = multiprocessing.get_context("spawn")
    for count in (2, 4):
        out = tmp_path_factory.mktemp(f"ranks{count}")
        processes = [spawn.Process(target=work, args=(rank, count, base, out)) for rank in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(280)
        assert [process.exitcode for process in processes] == [0] * count
        if count == 2:
            found[2, "ended"] = [json.loads((out / f"ended-{rank}.json").read_text()) for rank in range(2)]
        for case in cases(count):
            found[count, case] = [json.loads((out / f"{case}-{rank}.json").read_text()) for rank in range(count)]
    for case in CASES:
        found[1, case] = [trained(base, tmp_path_factory.mktemp("alone"), case, None)]
    return found


@pytest.mark.parametrize(("count", "case"), [(count, case) for count in (2, 4) for case in cases(count)])
def test_ranks_train_as_one_process_does(courses: dict[tuple[int, str], list[dict[str, Any]]], count: int, case: str) -> None:
    (alone,), together = courses[1, case], courses[count, case]
    assert together[0]["reason"] == alone["reason"]
    assert together[0]["course"] == pytest.approx(alone["course"], rel=1e-3)
    assert together[0]["validation"] == pytest.approx(alone["validation"], rel=1e-3)
    assert list(together[0]["adapter"]) == list(alone["adapter"])
    for name, values in alone["adapter"].items():
        assert torch.tensor(together[0]["adapter"][name]) == pytest.approx(torch.tensor(values), rel=1e-2, abs=2e-3)


@pytest.mark.parametrize("case", ["room", "fsdp_room", "sequence_room", "sequence_fused_room"])
def test_where_one_rank_finds_no_memory_all_take_less_at_once(courses: dict[tuple[int, str], list[dict[str, Any]]], case: str) -> None:
    first, second = courses[2, case]
    assert first["shrunk"] == second["shrunk"]
    assert "train" in {work for work, _, _ in first["shrunk"]}
    assert courses[1, case][0]["shrunk"] == []


@pytest.mark.parametrize(
    ("case", "steps", "rules"),
    [("rows_at_fault", [BLAMED + 1, BLAMED + 4], ["spike", "non_finite"]), ("update_at_fault", [BLAMED], ["spike"])],
)
def test_ranks_leave_out_the_step_at_fault_and_go_back_together(courses: Any, case: str, steps: list[int], rules: list[str]) -> None:
    for found in [*courses[1, case], *courses[2, case]]:
        assert found["left_out"] == steps
        assert [rule for _, rule, action in found["events"] if action == "roll_back"] == rules
        assert found["reason"] == "last_step"


def test_heads_that_cannot_be_dealt_to_the_ranks_end_the_training_with_a_sentence(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    with pytest.raises(UserError, match="4 heads of queries and 2 of keys cannot be dealt evenly to 3 processes"):
        Slices(Ranks(0, 3), model, torch.float32, 64)


def test_a_rank_that_finds_no_memory_for_its_update_says_so_and_the_others_miss_it(courses: Any) -> None:
    first, second = courses[2, "ended"]
    assert first["lost"]
    assert not second["lost"]
    assert second["said"].startswith("the memory ran out in the update of step 1, which no rank can do again alone; lower")


def test_every_rank_holds_the_same_adapter(courses: dict[tuple[int, str], list[dict[str, Any]]]) -> None:
    for first, *others in courses.values():
        assert all(other["adapter"] == first["adapter"] and other["course"] == first["course"] for other in others)


@given(lengths=st.lists(st.integers(1, 4000), min_size=1, max_size=40), ranks=st.integers(1, 8))
def test_rows_are_dealt_so_that_no_rank_has_a_row_too_many(lengths: list[int], ranks: int) -> None:
    dealt = deal(range(len(lengths)), lengths, ranks)
    assert sorted(row for rows in dealt for row in rows) == list(range(len(lengths)))
    tokens = [sum(lengths[row] for row in rows) for rows in dealt]
    assert max(tokens) - min(tokens) <= max(lengths)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_the_base_that_is_streamed_is_the_one_that_is_loaded_to_the_bit(tiny_base: Path, quantization: str) -> None:
    files = sorted(path for path in tiny_base.iterdir() if path.is_file())
    listed = [{"path": path.name, "sha256": digest} for path, digest in zip(files, digests(files), strict=True)]
    vocabulary = json.loads((tiny_base / "config.json").read_text())["vocab_size"]
    manifest = {"source": "folder", "location": str(tiny_base), "files": listed, "vocabulary": vocabulary}
    numerics = Numerics.model_validate({"quantization": quantization, "compute_dtype": "auto"})
    loaded = load_base(manifest, numerics, "cpu", vocabulary + 2)
    taken: list[int] = []
    streamed = stream_base(manifest, numerics, "cpu", vocabulary + 2, lambda number, layer: taken.append(number))
    assert taken == list(range(len(decoder_layers(loaded))))
    assert not any(tensor.is_meta for tensor in [*streamed.parameters(), *streamed.buffers()])
    one, two = loaded.state_dict(), streamed.state_dict()
    assert list(one) == list(two)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    ids = torch.arange(12)[None]
    assert torch.equal(loaded(input_ids=ids).logits, streamed(input_ids=ids).logits)
