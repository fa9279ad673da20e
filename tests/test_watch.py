"""The rules that watch a training: each speaks at what it watches for, says what to do, and is silent on an ordinary course."""

import math
import random
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.params import load_params
from stages.core.params_model import RunWatch, TrainWatch
from stages.train import watch
from stages.train.watch import Watch
from tests.tiny import ROOT

PARAMS = load_params(ROOT / "params.yaml")
Points = list[dict[str, float | None]]


def rules(train: dict[str, Any] | None = None, runtime: dict[str, Any] | None = None) -> Watch:
    """The repository's own rules, changed."""
    return Watch(
        TrainWatch.model_validate({**PARAMS.train.watch.model_dump(), **(train or {})}),
        RunWatch.model_validate({**PARAMS.runtime.watch.model_dump(), **(runtime or {})}),
        1.0,
    )


def falling(steps: int, seed: int = 0) -> list[float]:
    """The losses of an ordinary run: falling, noisy."""
    rng = random.Random(seed)
    return [0.5 + 3 * math.exp(-step / (steps / 4)) + rng.gauss(0, 0.1) for step in range(steps)]


def points(**columns: list[float]) -> Points:
    """Points of some columns, numbered from 1."""
    return [
        {"step": number + 1, **dict(zip(columns, values, strict=True))} for number, values in enumerate(zip(*columns.values(), strict=True))
    ]


def steady(steps: int, **changes: list[float]) -> Points:
    """A steady machine's speed."""
    rng = random.Random(1)
    plain = {"tokens_per_second": [1000 + rng.gauss(0, 50) for _ in range(steps)]}
    return points(**{**plain, "allocated_bytes": [8e9] * steps, **changes})


def heard(found: Watch, train: Points, speed: Points, events: Any = (), now: Any = None, usual: Any = None) -> list[str]:
    """The rules that speak after the last step."""
    return [event.rule for event in found.after_step(train, speed, events, lambda: (now or {}, usual or {}))]


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_said_of_an_ordinary_run(seed: int) -> None:
    losses = falling(200, seed)
    train = points(loss=losses, grad_norm=[0.5] * 200)
    found = rules()
    for step in range(1, 200):
        assert found.spike(losses[:step], step + 1, losses[step], []) is None
        assert heard(found, train[:step], steady(200)[:step]) == []


def test_the_committed_runs_own_course_has_no_spike() -> None:
    lines = (ROOT / "reports/curves/train.csv").read_text().splitlines()
    column = lines[0].split(",").index("loss")
    losses = [float(line.split(",")[column]) for line in lines[1:]]
    assert [step for step in range(len(losses)) if rules().spike(losses[:step], step + 1, losses[step], [])] == []


def test_a_spike_is_told_with_its_numbers_and_rows() -> None:
    losses = falling(100)
    event = rules({"spike": "roll_back"}).spike(losses, 101, 4.0, ["row7", "row9"])
    assert event is not None
    assert (event.step, event.rule, event.action) == (101, "spike", "roll_back")
    for part in ("jumped to 4", "row7, row9", "robust standard deviations", "lower train.learning_rate"):
        assert part in event.message


def test_a_fall_of_the_loss_is_no_spike_and_a_few_losses_are_no_measure() -> None:
    assert rules().spike(falling(100), 101, -50.0, []) is None
    assert rules().spike(falling(100)[:19], 20, 1e6, []) is None


@given(st.lists(st.floats(0, 20), min_size=20, max_size=50), st.floats(0, 100), st.floats(-5, 5))
def test_the_robust_score_is_the_same_wherever_zero_is(values: list[float], value: float, shift: float) -> None:
    score = watch.robust_score(values, value)
    shifted = watch.robust_score([each + shift for each in values], value + shift)
    assert score is not None
    assert shifted is not None
    assert math.isclose(score, shifted, abs_tol=1e-6, rel_tol=1e-6)
    assert (score > 0) == (value > statistics.median(values))


def test_the_robust_score_of_normal_noise_is_in_its_standard_deviations() -> None:
    rng = random.Random(3)
    values = [rng.gauss(5, 2) for _ in range(5000)]
    score = watch.robust_score(values, 15.0)
    assert score == pytest.approx(5, rel=0.05)


def test_a_number_that_is_none_is_told_with_its_rows() -> None:
    event = rules().non_finite(7, "loss", math.nan, ["row3"])
    assert (event.rule, event.action) == ("non_finite", "stop")
    assert "the loss is nan on the rows row3; look at these rows (luthier show)" in event.message


def test_a_gradient_above_the_clip_is_told_once_it_lasted() -> None:
    norms = [0.5] * 50 + [2.5] * 100
    train = points(loss=falling(150), grad_norm=norms)
    assert heard(rules(), train[:140], steady(140)) == []
    assert heard(rules(), train, steady(150)) == ["gradient_norm"]
    said = watch.clipped_for_long(train, 1.0)
    assert said is not None
    assert "above train.max_grad_norm (1) in 100 of the last 100 steps (median 2.5)" in said


def test_a_rule_that_spoke_is_silent_for_a_while() -> None:
    train, speed = points(loss=falling(150), grad_norm=[2.5] * 150), steady(150)
    assert heard(rules(), train, speed, [{"rule": "gradient_norm", "step": 120}]) == []
    assert heard(rules(), train, speed, [{"rule": "gradient_norm", "step": 30}]) == ["gradient_norm"]
    assert heard(rules(), train, speed, [{"rule": "plateau", "step": 120}]) == ["gradient_norm"]


def test_an_action_is_the_one_that_params_name() -> None:
    train = points(loss=falling(150), grad_norm=[2.5] * 150)
    (event,) = rules(runtime={"gradient_norm": "stop"}).after_step(train, steady(150), [], lambda: ({}, {}))
    assert event.action == "stop"


SLOW = [1000.0] * 90 + [600.0] * 10
USUAL = {
    "throttled_heat": 0.0,
    "throttled_power": 0.9,
    "others_bytes": 0.0,
    "others_cores": 0.2,
    "cores": 16.0,
    "sm_mhz": 1700.0,
    "busy": 0.95,
    "own_cores": 1.9,
}


@pytest.mark.parametrize(
    ("now", "cause"),
    [
        ({"throttled_heat": 0.9}, "held down by heat for 90% of that time"),
        ({"throttled_hardware": 1.0}, "held down by a hardware slowdown"),
        ({"sm_mhz": 1000.0}, "the GPU's clock fell to 1,000 from 1,700 MHz"),
        ({"others_bytes": 5.0 * 2**30}, "another process took 5.0 GiB of the GPU's memory"),
        ({"others_cores": 9.0}, "other processes use 9.0 cores, 8.8 more than before"),
        ({"busy": 0.4}, "the GPU was at work in 40% of that time, in 95% before; it waited for the host"),
        ({"own_cores": 0.5}, "this process had 0.5 cores at work, 1.9 before"),
        ({}, "no cause was seen"),
    ],
    ids=["heat", "hardware", "clock", "process on the GPU", "process on the host", "rows", "disk", "unknown"],
)
def test_a_drop_of_the_throughput_is_told_with_its_cause(now: dict[str, float], cause: str) -> None:
    speed = steady(100, tokens_per_second=SLOW)
    said = watch.slower(speed, 0.3, lambda: ({**USUAL, **now}, USUAL))
    assert said is not None
    assert "the last 10 steps made 600 tokens a second, the run's median is 1,000" in said
    assert cause in said


def test_a_drop_without_sensors_is_told_as_such() -> None:
    said = watch.slower(steady(100, tokens_per_second=SLOW), 0.3, lambda: ({}, {}))
    assert said is not None
    assert "the cause is unknown, since no sensor was read" in said


def test_what_was_always_so_is_no_cause() -> None:
    assert watch.causes(USUAL, USUAL) == []  # the power limit held the clock down all the time


def test_a_small_drop_and_a_short_one_are_not_told() -> None:
    assert watch.slower(steady(100, tokens_per_second=[1000.0] * 90 + [800.0] * 10), 0.3, lambda: ({}, {})) is None
    assert watch.slower(steady(100, tokens_per_second=[1000.0] * 96 + [100.0] * 4), 0.3, lambda: ({}, {})) is None


def test_the_conditions_are_asked_for_only_where_the_throughput_fell() -> None:
    def never() -> Any:
        raise AssertionError

    assert watch.slower(steady(100), 0.3, never) is None


def test_memory_that_grows_steadily_is_told_and_memory_that_comes_and_goes_is_not() -> None:
    rng = random.Random(2)
    noise = [rng.uniform(0, 2e9) for _ in range(160)]
    leaking = [8e9 + 2e7 * step for step in range(160)]
    said = watch.growing(steady(160, allocated_bytes=[base + extra for base, extra in zip(leaking, noise, strict=True)]))
    assert said is not None
    assert "memory held between steps grew from" in said
    assert watch.growing(steady(160, allocated_bytes=[8e9 + extra for extra in noise])) is None
    assert watch.growing(steady(160, allocated_bytes=[8e9] * 100 + [12e9] * 60)) is None  # once, not steadily


def test_a_plateau_is_told_and_slow_progress_is_not() -> None:
    rng = random.Random(4)
    level = points(loss=[0.9, 1.1] * 50)
    slow = points(loss=[1 - 0.002 * step + rng.gauss(0, 0.1) for step in range(100)])
    assert watch.flat(slow, 50) is None
    assert watch.flat(level[:99], 50) is None
    said = watch.flat(level, 50)
    assert said is not None
    assert "no progress beyond the noise" in said
    assert watch.flat(points(loss=[1 + 0.002 * step for step in range(100)]), 50) is not None


def test_a_validation_loss_that_rises_three_times_is_told() -> None:
    course = points(loss=[2.0, 1.0, 1.1, 1.2, 1.3])
    found = rules(runtime={"validation_rising": "stop"})
    assert [found.after_validation(course[:end], []) for end in range(1, 5)] == [None] * 4
    event = found.after_validation(course, [])
    assert event is not None
    assert event.action == "stop"
    assert "rose 3 times in a row, from 1 to 1.3" in event.message
    assert found.after_validation(points(loss=[1.0, 1.2, 1.1, 1.3, 1.4]), []) is None
    assert found.after_validation(points(loss=[1.0, 1.001, 1.002, 1.003]), []) is None
