"""Real processes, really killed: a run that was cut off ends in the bytes of one that was not, and an unfinished one publishes nothing."""

import json
import signal
from pathlib import Path

import pytest

from stages.core.files import sha256_file
from tests import trainable

CHANGES = {"train__epochs": 2.0, "train__max_steps": None, "train__dropout": 0.1, "train__eval_every": 4, "runtime__save_every": 3}
COMPARED = ["models/adapter/adapter_model.safetensors", "models/adapter/adapter_config.json", "models/adapter/train_state.json"]
COMPARED += ["data/trained/steps.parquet", "reports/train.json", "reports/curves/train.csv", "reports/curves/validation.csv"]
# sends itself a signal before the step, so that a test knows where it was hit; the signal is as real as any
AT_STEP = """
import os, signal, time
from stages.train import sft
plain = sft.Training._train
def hit(self, step):
    if step.number == {step}:
        {action}
    plain(self, step)
sft.Training._train = hit
"""
# dies when the first file of a checkpoint lies on the disk and nothing marks it whole
IN_SAVE = """
import os, signal
from stages.train import checkpoints
def die(path):
    os.kill(os.getpid(), signal.SIGKILL)
checkpoints._sync = die
"""
MEASURED = "reports/train_machine.json"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model is slower on many threads, and the tests' processes share the machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> dict[str, str]:
    """The digests of an uninterrupted run's outs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        root = trainable.prepare(tmp_path_factory.mktemp("straight") / "w", tiny_base, **CHANGES)
        code, said = trainable.run(root)
    assert code == 0, said
    assert json.loads((root / MEASURED).read_text())["details"][0]["resumed_from"] == []
    return digests(root)


def digests(root: Path) -> dict[str, str]:
    """The sha256 of every out that is a function of the inputs."""
    return {name: sha256_file(root / name) for name in COMPARED}


def published(root: Path) -> list[str]:
    """The outs of train that are there."""
    return [name for name in [*COMPARED, MEASURED, "models/adapter"] if (root / name).exists()]


def at(step: int, action: str) -> str:
    """Code that does something before a step."""
    return AT_STEP.format(step=step, action=action)


def checkpoint_steps(root: Path) -> list[int]:
    """The steps of the checkpoints in the work dir."""
    return sorted(int(path.name.removeprefix("step-")) for path in root.glob(".work/train/*/*/step-????????"))


def test_a_run_killed_in_a_step_in_a_save_by_sigterm_and_by_ctrl_c_ends_in_the_bytes_of_an_uninterrupted_one(
    tmp_path: Path, tiny_base: Path, straight: dict[str, str]
) -> None:
    root = trainable.prepare(tmp_path / "w", tiny_base, **CHANGES)
    code, _ = trainable.run(root, at(5, "os.kill(os.getpid(), signal.SIGKILL)"))
    assert (code, checkpoint_steps(root), published(root)) == (-signal.SIGKILL, [3], [])

    code, said = trainable.run(root, IN_SAVE)
    assert "going on after step 3 of 12" in said
    assert (code, checkpoint_steps(root), published(root)) == (-signal.SIGKILL, [3], [])
    assert list(root.glob(".work/train/*/*/step-00000006.part/*")) != []

    code, said = trainable.run(root, at(8, "os.kill(os.getpid(), signal.SIGTERM)"))
    assert "going on after step 3 of 12" in said
    assert "stopped by SIGTERM" in said
    assert (code, checkpoint_steps(root), published(root)) == (75, [6, 7], [])

    # the newest checkpoint is harmed on the disk
    weights = next(root.glob(".work/train/*/*/step-00000007/adapter.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    code, said = trainable.run(root, at(11, "os.kill(os.getpid(), signal.SIGINT)"))
    assert "passed over: adapter.safetensors is not what was written" in said
    assert "going on after step 6 of 12" in said
    assert (code, published(root)) == (130, [])

    code, said = trainable.run(root)
    assert (code, digests(root)) == (0, straight), said
    assert json.loads((root / MEASURED).read_text())["details"][0]["resumed_from"] == [3, 6, 10]
    assert checkpoint_steps(root) == []


def test_a_parameter_edited_while_it_trains_is_named_and_putting_it_back_publishes_without_training(
    tmp_path: Path, tiny_base: Path, straight: dict[str, str]
) -> None:
    root = trainable.prepare(tmp_path / "w", tiny_base, **CHANGES)
    params = (root / "params.yaml").read_text()
    edit = "from tests import tiny; from pathlib import Path; tiny.edit_params(Path('.'), train__learning_rate=0.1, card__name='other')"
    code, said = trainable.run(root, at(2, edit))
    assert code == 1
    assert "params.yaml: train.learning_rate changed while train ran, so nothing was published" in said
    assert "card" not in said
    assert "Traceback" not in said
    assert published(root) == []

    (root / "params.yaml").write_text(params)
    code, said = trainable.run(root, at(1, "raise AssertionError('it trained')"))
    assert (code, digests(root)) == (0, straight), said


def test_a_second_trainer_of_the_same_run_is_refused_and_told_the_pid_of_the_first(tmp_path: Path, tiny_base: Path) -> None:
    root = trainable.prepare(tmp_path / "w", tiny_base, **CHANGES)
    first = trainable.start(root)
    try:
        trainable.wait_for(lambda: any(path.read_text() for path in root.glob(".work/train/*/lock")), first)
        code, said = trainable.run(root)
        assert code == 1
        assert f"another train with the same inputs is running (process {first.pid})" in said
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
