"""The planner: sizes from config.json alone, a plan that fits, faster where there is room, and `luthier plan` on published models."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core import planner, planner_cards, planner_job, planner_memory
from stages.core.errors import UserError
from stages.core.files import cache_root
from stages.core.params import load_params
from stages.core.planner import GIB, Choice, choose, constants, run_record
from stages.core.planner_memory import Load, Method
from stages.core.planner_shape import shape_of
from tests.tiny import ROOT

# parameters as published on the models' pages, in thousands of millions, and those of a rank-16 LoRA on all linear layers, in millions
PUBLISHED = {
    "Llama-3.2-1B": (1.24, 11.27),
    "Qwen2.5-7B": (7.62, 40.37),
    "Llama-3.1-8B": (8.03, 41.94),
    "Llama-2-13B": (13.02, 62.59),
    "Qwen2.5-32B": (32.76, 134.22),
}


def config(name: str) -> dict[str, Any]:
    """A published config.json."""
    read: dict[str, Any] = json.loads((ROOT / f"tests/configs/{name}.json").read_text(encoding="utf-8"))
    return read


def job(name: str = "Llama-3.1-8B", gib: float = 24, **changes: Any) -> dict[str, Any]:
    """400 rows of 2,048 tokens."""
    asked: dict[str, Any] = {
        "config": config(name),
        "quantization": "nf4",
        "rank": 16,
        "target_modules": "all-linear",
        "lengths": [2048] * 400,
        "effective_batch": 16,
        "optimizer": "adamw",
        "deterministic": False,
        "available_bytes": int(gib * GIB),
        "runs": [],
    }
    return {**asked, **changes}


def plan(name: str = "Llama-3.1-8B", gib: float = 24, **changes: Any) -> Choice:
    """A plan for such a job on an H100."""
    return choose(**job(name, gib, **{"card_name": "NVIDIA H100 80GB HBM3", **changes}))


@pytest.mark.parametrize(("name", "parameters", "lora"), [(name, *sizes) for name, sizes in PUBLISHED.items()])
def test_parameters_of_base_and_adapter_are_the_published_ones(name: str, parameters: float, lora: float) -> None:
    shape = shape_of(config(name))
    assert shape.parameters / 1e9 == pytest.approx(parameters, abs=0.006)
    assert shape.adapter_parameters(16, "all-linear") / 1e6 == pytest.approx(lora, abs=0.01)


def test_an_adapter_on_some_modules_counts_those_only() -> None:
    shape = shape_of(config("Llama-3.1-8B"))
    assert shape.adapter_parameters(8, ["q_proj", "model.layers.0.self_attn.v_proj"]) == 32 * 8 * (4096 + 4096 + 4096 + 1024)


def test_a_model_with_pictures_is_planned_by_its_text_part() -> None:
    assert shape_of({"model_type": "some_vl", "text_config": config("Qwen2.5-7B")}) == shape_of(config("Qwen2.5-7B"))


@pytest.mark.parametrize("broken", [{"hidden_size": 64}, {"num_local_experts": 8}])
def test_a_config_that_cannot_be_planned_from_is_told_in_one_sentence(broken: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        shape_of(broken)


def test_weights_take_what_was_measured() -> None:
    """8B in NF4: what bitsandbytes holds after loading, 5.3 GiB and the embeddings' part of it, within a hundredth."""
    held = planner_memory.held_bytes(shape_of(config("Llama-3.1-8B")), Method("fused", "nf4", 16, "all-linear", "adamw", False))
    weights = 6979321856  # of the matrices of 32 layers
    assert held["base"] == pytest.approx(weights / 2 + weights / 64 + weights / 64 / 256 * 4, rel=0.001)
    assert held["embeddings"] == 2 * 2 * 128256 * 4096
    assert held["adapter"] == 41943040 * 8
    assert held["optimizer"] == 41943040 * 8


@given(
    name=st.sampled_from(sorted(PUBLISHED)),
    gib=st.floats(6, 140),
    quantization=st.sampled_from(["nf4", "none"]),
    engine=st.sampled_from(["fused", "plain"]),
    batching=st.sampled_from(["bucket", "pack"]),
    lengths=st.lists(st.integers(2, 9000), min_size=1, max_size=40),
    effective_batch=st.integers(1, 64),
)
def test_every_plan_fits_carries_the_longest_row_and_adds_up(
    name: str, gib: float, quantization: str, engine: str, batching: str, lengths: list[int], effective_batch: int
) -> None:
    asked = {"quantization": quantization, "engine": engine, "batching": batching, "lengths": lengths, "effective_batch": effective_batch}
    try:
        choice = plan(name, gib, **asked)
    except UserError:  # nothing fits
        return
    assert choice.micro_batch_tokens >= max(lengths)
    assert choice.peak_bytes <= gib * GIB
    assert abs(sum(choice.parts.values()) - choice.peak_bytes) <= 1
    assert 0 <= choice.recomputed <= choice.layers
    assert choice.tokens_per_second > 0


@given(name=st.sampled_from(sorted(PUBLISHED)), gib=st.floats(8, 100), more=st.floats(1, 40))
def test_more_memory_never_makes_a_plan_slower(name: str, gib: float, more: float) -> None:
    try:
        less = plan(name, gib)
    except UserError:
        return
    assert plan(name, gib + more).tokens_per_second >= less.tokens_per_second * (1 - planner.LIKE)


@given(
    tokens=st.integers(64, 40000),
    recomputed=st.integers(0, 31),
    engine=st.sampled_from(["fused", "plain"]),
    factors=st.sampled_from([planner.constants()["fused"]["memory"], planner.constants()["plain"]["memory"]]),
)
def test_more_tokens_take_more_memory_and_offload_takes_less(tokens: int, recomputed: int, engine: str, factors: dict[str, float]) -> None:
    shape, method = shape_of(config("Llama-3.1-8B")), Method(engine, "nf4", 16, "all-linear", "adamw", False)

    def total(load: Load) -> int:
        return sum(planner_memory.peak(shape, method, load, factors).values())

    load = Load(tokens, recomputed, False, tokens, tokens)
    assert total(replace(load, tokens=tokens + 64)) >= total(load)
    assert total(replace(load, offload=True)) <= total(load)
    assert total(replace(load, mlp_tokens=max(1, tokens // 2))) <= total(load)


def test_the_smaller_the_card_the_more_is_recomputed() -> None:
    fixed = {"micro_batch_tokens": 8192}
    recomputed = [plan(gib=gib, **fixed).recomputed for gib in (16, 20, 24, 32, 48)]
    assert recomputed == sorted(recomputed, reverse=True)
    assert recomputed[0] > 0
    assert recomputed[-1] == 0


def test_a_cap_is_planned_within() -> None:
    assert plan(gib=80, cap_bytes=14 * GIB).peak_bytes <= 14 * GIB


def test_what_the_user_fixed_is_kept() -> None:
    choice = plan(micro_batch_tokens=2048, recompute=7)
    assert (choice.micro_batch_tokens, choice.recomputed) == (2048, 7)


def test_equal_rows_are_not_counted_as_if_they_could_be_cut() -> None:
    """Of rows of 2,048 tokens a limit of 3,000 carries one, and the plan for it costs what one does."""
    assert plan(micro_batch_tokens=3000).passes == 16
    assert plan(micro_batch_tokens=3000).peak_bytes == plan(micro_batch_tokens=2048).peak_bytes


def test_what_does_not_fit_says_how_much_it_needs_and_what_helps() -> None:
    with pytest.raises(UserError, match=r"32\.8B parameters needs at least \d+\.\d GiB.*numerics\.quantization: nf4"):
        plan("Qwen2.5-32B", 24, quantization="none")


@pytest.mark.parametrize(
    ("asked", "name"), [("RTX 4090", "RTX 4090"), ("4090", "RTX 4090"), ("a100 80gb pcie", "A100 80GB PCIe"), ("h200", "H200")]
)
def test_a_card_is_found_by_the_name_people_use(asked: str, name: str) -> None:
    assert planner_cards.asked_for(asked).name == name


def test_a_card_is_found_by_the_drivers_name() -> None:
    found = planner_cards.named("NVIDIA GeForce RTX 4090", 25_300_000_000)
    assert (found.name, found.memory_bytes, found.tflops) == ("NVIDIA GeForce RTX 4090", 25_300_000_000, 165)
    assert planner_cards.named("NVIDIA A100-SXM4-40GB", 42 * 10**9).bandwidth == 1555
    assert planner_cards.named("NVIDIA H100 80GB HBM3", 80 * GIB).tflops == 989


def test_a_size_promises_no_more_than_the_slowest_card_of_it() -> None:
    for text in ("24GiB", "24 GB", "24"):
        card = planner_cards.asked_for(text)
        assert (card.memory_bytes, card.tflops) == (24 * GIB, 71)
    assert not planner_cards.named("Some Card of Next Year", 24 * GIB).known


def test_an_unknown_card_without_a_size_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(UserError, match="RTX 4090"):
        planner_cards.asked_for("Voodoo")


def test_past_runs_on_a_card_correct_the_next_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    first = plan(runs=None)
    for share in (0.7, 0.8, 0.9):
        planner.remember("NVIDIA H100 80GB HBM3", first, first.peak_bytes + GIB // 2, share * first.tokens_per_second)
    planner.remember("another card", first, first.peak_bytes, 10 * first.tokens_per_second)
    with (cache_root() / planner.RUNS).open("a") as file:
        file.write('{"cut off')
    again = plan(runs=None, micro_batch_tokens=first.micro_batch_tokens, recompute=first.recomputed)
    assert again.speed_scale == pytest.approx(0.8)
    assert again.offset_bytes == GIB // 2
    assert again.tokens_per_second <= 0.81 * first.tokens_per_second
    assert plan("Llama-3.1-8B", 24, runs=None, card_name="NVIDIA RTX A6000").speed_scale == 1


def test_a_corrected_run_teaches_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered is beside the uncorrected prediction, or corrections would pile up."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    fixed: dict[str, Any] = {"runs": None, "micro_batch_tokens": 4096, "recompute": 32}
    first = plan(**fixed)
    truth = 0.8 * first.tokens_per_second
    for _ in range(3):
        planner.remember("NVIDIA H100 80GB HBM3", plan(**fixed), first.peak_bytes, truth)
    assert plan(**fixed).tokens_per_second == pytest.approx(truth)


def test_a_slow_host_slows_what_waits_for_it_alone() -> None:
    usual = constants()["launch_seconds"]
    small, large = ({"micro_batch_tokens": tokens, "recompute": 0, "lengths": [512] * 400} for tokens in (512, 16384))
    for name, load, least, most in (("Llama-3.2-1B", small, 1.7, 2.01), ("Llama-3.1-8B", large, 0.99, 1.25)):
        speeds = [plan(name, 80, launch_seconds=usual * slowness, **load).tokens_per_second for slowness in (1, 2)]
        assert least < speeds[0] / speeds[1] < most


def test_the_host_of_the_last_run_on_the_card_is_planned_for() -> None:
    card, slow = "NVIDIA H100 80GB HBM3", 3 * constants()["launch_seconds"]
    first = plan("Llama-3.2-1B", 80, launch_seconds=slow)
    runs = [run_record(card, first, first.peak_bytes, first.tokens_per_second)]
    assert plan("Llama-3.2-1B", 80, runs=runs).launch_seconds == slow
    assert plan("Llama-3.2-1B", 80, runs=[{**runs[0], "card": "another"}]).launch_seconds == constants()["launch_seconds"]


def test_a_choice_survives_json() -> None:
    choice = plan()
    assert asdict(Choice(**json.loads(json.dumps(asdict(choice)))))["parts"] == choice.parts


def test_warnings_have_a_reason_each() -> None:
    params = load_params(ROOT / "params.yaml")
    bare = params.evaluate.model_copy(update={"few_shot": 0, "base_prompt": "{text}"})
    shape, card = shape_of(config("Llama-3.1-8B")), planner_cards.asked_for("RTX 4080")
    planned = replace(planner_job.job(shape, plan(gib=15), card, params, [2048] * 100, []), hours=70)
    said = planner_job.warnings(planned, shape, card, params.model_copy(update={"evaluate": bare}), 100, GIB, GIB, False)
    disk = ["no room on disk: checkpoints", "no room on disk: the base"]
    for text in ("one card of 16 GiB", "100 training rows", "no prompting baseline", *disk, "2.9 days"):
        assert sum(text in warning for warning in said) == 1, text
    assert planner_job.should_not(planned) is None
    assert "30 days" in str(planner_job.should_not(replace(planned, hours=720)))


def test_a_job_counts_as_the_training_does() -> None:
    params = load_params(ROOT / "params.yaml")
    train = params.train.model_copy(update={"epochs": 2.0, "effective_batch": 16, "max_steps": None})
    card = planner_cards.asked_for("RTX 4090")
    planned = planner_job.job(shape_of(config("Llama-3.1-8B")), plan(), card, params.model_copy(update={"train": train}), [100] * 40, [])
    assert (planned.steps, planned.tokens) == (6, 8000)
    assert planned.hours == pytest.approx(8000 / plan().tokens_per_second / 3600)


def luthier_plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command at the repository's root, without a GPU."""
    return subprocess.run(["luthier", "plan", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_model_is_planned_without_a_gpu(name: str) -> None:
    done = luthier_plan("--config", f"tests/configs/{name}.json", "--gpu", "24GiB", "--tokens", "2048", "--rows", "5000")
    assert done.returncode == 0, done.stderr
    for word in ("peak memory", "tokens/s", "kWh", "micro_batch_tokens", "accumulation", "recompute", "checkpoints", "advice"):
        assert word in done.stdout


def test_without_a_card_all_known_ones_are_told() -> None:
    done = luthier_plan("--config", "tests/configs/Llama-3.1-8B.json", "--tokens", "2048")
    assert done.returncode == 0, done.stderr
    assert all(card.name in done.stdout for card in planner_cards.CARDS) or "card    NVIDIA" in done.stdout


def test_a_job_that_fits_nowhere_is_refused_with_its_reason() -> None:
    done = luthier_plan("--config", "tests/configs/Qwen2.5-32B.json", "--gpu", "RTX 3060", "--tokens", "2048")
    assert done.returncode == 1
    assert "should not be done on RTX 3060: a base of 32.8B parameters needs at least" in done.stderr


def test_planning_loads_no_model_library() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'bitsandbytes'}"
    code = (
        "import sys; from stages.cli.main import main\n"
        "try: main(['plan', '--config', 'tests/configs/Llama-3.1-8B.json', '--gpu', '24GiB', '--tokens', '512'])\n"
        f"except SystemExit: pass\nprint(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
