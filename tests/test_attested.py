"""Releases that are signed: the statement holds in the repository and in a folder handed on, each tampering is named, and a bare file is
led back to what made it."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.cli import attested, signing
from stages.core.files import sha256_file
from tests.commands import git, luthier

ADAPTER = "models/adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def root(reproduced: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with a key, a signed release v1.0.0, and the release as a folder beside it."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("attested")
        patch.setenv("XDG_CONFIG_HOME", str(place / "config"))
        copy = shutil.copytree(reproduced, place / "workspace", symlinks=True)
        assert luthier(copy, "keygen").returncode == 0
        git(copy, "add", "luthier.pub")
        git(copy, "commit", "--quiet", "--message", "key")
        for command in (["release", "v1.0.0"], ["attest", "../released"]):
            done = luthier(copy, *command)
            assert done.returncode == 0, done.stdout + done.stderr
        yield copy


@pytest.fixture
def intact(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace, the current folder while the test runs; the tests put back what they change."""
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def released(root: Path, tmp_path: Path) -> Path:
    """A copy of the folder handed on, to be tampered with."""
    return shutil.copytree(root.parent / "released", tmp_path / "released")


def wrong(folder: Path, key: Path) -> list[str]:
    """What does not hold of a released folder."""
    return [check for check in attested.folder_checks(folder, key) if check]


def flip(path: Path, place: float = 0.5) -> None:
    """Changes one bit of a byte; a file that the cache shares is replaced."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_a_release_keeps_its_statement_beside_the_tag_and_it_names_what_it_was_made_from(intact: Path) -> None:
    (kept,) = attested.kept()
    assert (kept.tag, kept.commit) == ("adapter@v1.0.0", git(intact, "rev-parse", "HEAD"))
    stated, problem = signing.unseal(kept.envelope, signing.read_public_key(Path("luthier.pub")), "it")
    assert stated is not None
    assert problem == ""
    assert attested.subjects(stated)[ADAPTER] == sha256_file(Path(ADAPTER))
    named = attested.dependencies(stated)
    assert named["commit"]["digest"] == {"gitCommit": kept.commit}
    assert named["dvc.lock"]["digest"] == {"sha256": sha256_file(Path("dvc.lock"))}
    assert {"params.yaml", "requirements.lock", "data/split/train.parquet", "data/sources", "base", "base/model.safetensors"} <= set(named)
    assert stated["predicate"]["buildDefinition"]["externalParameters"]["train"]["rank"] == 4
    assert named["data/split/train.parquet"]["annotations"]["row_set"]["rows"] == 40
    assert kept.envelope == (intact.parent / "released" / attested.ENVELOPE).read_text()


def test_the_signed_release_holds_here_as_a_tag_and_as_a_folder(intact: Path) -> None:
    for target in ("adapter@v1.0.0", "../released"):
        done = luthier(intact, "verify", target)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", [ADAPTER, "reports/card/README.md", "reports/card/provenance.json", "models/export/gguf/model-f16.gguf"])
def test_one_changed_byte_of_a_released_file_is_named(root: Path, released: Path, name: str) -> None:
    flip(released / name)
    (said,) = wrong(released, root / "luthier.pub")
    assert said.startswith(f"{released / name} is ")


def test_verify_prints_what_is_wrong_of_a_folder_and_fails(root: Path, released: Path) -> None:
    flip(released / ADAPTER)
    done = luthier(root, "verify", str(released))
    assert done.returncode == 1
    assert done.stdout.startswith(f"does not hold: {released / ADAPTER} is ")


@pytest.mark.parametrize("part", ["payload", "sig"])
def test_one_changed_byte_of_statement_or_signature_is_named(root: Path, released: Path, part: str) -> None:
    envelope = released / attested.ENVELOPE
    text = envelope.read_text()
    place = text.index(f'"{part}": "') + len(part) + 20
    envelope.write_text(text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :])
    assert wrong(released, root / "luthier.pub")[0].startswith(str(envelope))


def test_a_missing_file_an_added_file_and_another_key_are_named(root: Path, released: Path, tmp_path: Path) -> None:
    (released / ADAPTER).unlink()
    (released / "extra.bin").write_bytes(b"x")
    said = wrong(released, root / "luthier.pub")
    assert said[0].startswith(f"{released / ADAPTER} is missing")
    assert said[1] == f"{released / 'extra.bin'} is in no statement"
    signing.make_key(tmp_path / "other.pem", tmp_path / "other.pub", None)
    assert "not by the key" in wrong(released, tmp_path / "other.pub")[0]
    assert "nobody vouches" in luthier(root, "verify", str(released), "--key", "none.pub").stderr


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dvc.lock", "adapter@v1.0.0: the statement says"),
        ("requirements.lock", "of requirements.lock digest sha256"),
        ("data/split/train.parquet", "of data/split/train.parquet digest sha256"),
        (ADAPTER, f"of {ADAPTER}, and it is"),
        ("reports/card/README.md", "of reports/card/README.md, and it is"),
    ],
)
def test_one_changed_byte_in_the_repository_is_named_against_the_statement(intact: Path, name: str, told: str) -> None:
    path = intact / name
    good = path.read_bytes()
    if name == "dvc.lock":  # a digit of a digest, so that it is still YAML
        place = good.index(b"md5: ") + 5
        path.write_bytes(good[:place] + (b"0" if good[place : place + 1] != b"0" else b"1") + good[place + 1 :])
    else:
        flip(path, 0.3)
    try:
        checks = list(attested.release_checks(git(intact, "rev-parse", "HEAD"), Path("luthier.pub")))
    finally:
        path.write_bytes(good)
    (said,) = [check for check in checks if check and "annotations" not in check]
    assert told in said


def test_a_bare_file_is_vouched_for_by_a_release_and_an_altered_one_is_not(intact: Path, tmp_path: Path) -> None:
    bare = tmp_path / "found.safetensors"
    shutil.copyfile(ADAPTER, bare)
    assert luthier(intact, "verify", str(bare)).returncode == 0
    assert set(attested.artefact_checks(Path("models/adapter"), Path("luthier.pub"))) == {""}
    flip(bare)
    (said,) = attested.artefact_checks(bare, Path("luthier.pub"))
    assert said == f"{bare} ({sha256_file(bare)}) is not in any of 1 signed statements"


def test_who_has_only_the_folder_and_the_public_key_can_check_it(
    root: Path, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(root / "luthier.pub", tmp_path / "maker.pub")
    monkeypatch.setenv("PYTHONPATH", str(root))
    assert luthier(tmp_path, "verify", "released", "--key", "maker.pub").returncode == 0


def test_without_a_key_nothing_is_signed_and_the_user_is_told(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    done = luthier(root, "attest", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "make one: luthier keygen" in done.stderr
    assert list(tmp_path.iterdir()) == []


def origin(root: Path, path: Path) -> subprocess.CompletedProcess[str]:
    return luthier(root, "origin", str(path))


def without_cache(root: Path, place: Path) -> Path:
    """A clone as one has it six months later: git's history and notes, no data, no models, no DVC cache."""
    git(place, "clone", "--quiet", str(root), "later")
    git(place / "later", "fetch", "--quiet", "origin", f"{attested.NOTES}:{attested.NOTES}")
    assert not (place / "later/models/adapter").exists()
    return place / "later"


def test_six_months_later_a_bare_file_names_repository_commit_data_and_licence(root: Path, tmp_path: Path) -> None:
    later = without_cache(root, tmp_path)
    shutil.copyfile(root / ADAPTER, tmp_path / "found.safetensors")
    git(later, "commit", "--quiet", "--allow-empty", "--message", "life goes on")
    done = origin(later, tmp_path / "found.safetensors")
    assert done.returncode == 0, done.stderr
    said = {line[2:13].strip(): line[13:] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert done.stdout.startswith(f"{tmp_path}/found.safetensors is {ADAPTER}, sha256 {sha256_file(root / ADAPTER)}")
    made = git(root, "log", "--format=%H", "--diff-filter=A", "--", "reports/card/provenance.json")
    assert git(root, "rev-parse", "adapter@v1.0.0^{commit}") in said["commit"]  # of the release, which was verified as a whole
    assert said["first seen"].startswith(made[:7])
    assert said["repository"] == str(root)
    assert said["release"] == "adapter@v1.0.0, whose signed statement names it"
    assert said["data"].startswith("data/sources/rows.jsonl, 120 rows, licence not stated")
    assert said["trained on"].startswith("40 rows, set ")
    assert said["licence"] == "apache-2.0"
    assert said["base"].startswith("tiny-base, sha256:")


def test_a_folder_is_known_whole_and_an_altered_file_of_it_is_named(root: Path, released: Path) -> None:
    folder = released / "models/adapter"
    assert origin(root, folder).returncode == 0
    flip(folder / "adapter_model.safetensors")
    done = origin(root, folder)
    assert done.returncode == 1
    assert "adapter_model.safetensors of" in done.stderr
    assert "is in no commit of this repository: it was altered, or put there from elsewhere" in done.stderr
    assert "the other files of the folder are known" in done.stdout
    assert "it says of itself: base tiny-base" in done.stdout


GGUF = "models/export/gguf/model-f16.gguf"


@pytest.mark.parametrize("name", [ADAPTER, "models/export/merged/model.safetensors", GGUF])
def test_a_bare_file_whose_weights_were_changed_is_led_back_by_its_own_head(root: Path, tmp_path: Path, name: str) -> None:
    bare = Path(shutil.copyfile(root / name, tmp_path / Path(name).name))
    flip(bare, 0.99)
    done = origin(root, bare)
    assert done.returncode == 1
    assert ("The adapter that it names is known" if name == GGUF else "What it says it is is known") in done.stdout
    assert "it says of itself: general.base_model.0.name tiny-base" in done.stdout
    assert "licence    apache-2.0" in done.stdout
    changed = "it was altered after the export" if name == GGUF else "its weights were changed since commit"
    assert changed in done.stderr


def test_a_changed_head_is_told_from_changed_weights_and_a_cut_off_gguf_is_led_back_too(root: Path, tmp_path: Path) -> None:
    head = Path(shutil.copyfile(root / ADAPTER, tmp_path / "head.safetensors"))
    head.write_bytes(head.read_bytes().replace(b'"general.type":"adapter"', b'"general.type":"adaptor"'))
    assert "its weights are those it was written with, so its head was altered" in origin(root, head).stderr
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((root / GGUF).read_bytes()[:4000])
    assert "the adapter that it names is known".capitalize() in origin(root, cut).stdout
    cut.write_bytes((root / GGUF).read_bytes()[:40])
    assert "is unknown: none of this repository's" in origin(root, cut).stderr


def test_a_released_folder_tells_its_origin_by_its_statement_where_there_is_no_repository(root: Path, released: Path) -> None:
    adapter = released / "models/adapter"
    done = luthier(released.parent, "origin", str(adapter), "--key", str(root / "luthier.pub"))
    assert done.returncode == 0, done.stderr
    assert f"commit     {git(root, 'rev-parse', 'HEAD')}" in done.stdout
    assert "data       data/sources/rows.jsonl, licence not stated, sha256 " in done.stdout
    flip(adapter / "adapter_model.safetensors")
    done = luthier(released.parent, "origin", str(adapter), "--key", str(root / "luthier.pub"))
    assert done.returncode == 1
    assert f"{adapter}/adapter_model.safetensors is not in" in done.stdout
    assert "name the maker's public key, --key FILE" in luthier(released.parent, "origin", str(adapter)).stdout


def test_outside_a_repository_and_in_a_shallow_clone_it_says_what_to_do(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(root))
    shutil.copyfile(root / ADAPTER, tmp_path / "found.safetensors")
    assert "this folder is in no git repository" in origin(tmp_path, tmp_path / "found.safetensors").stderr
    assert "is not there" in origin(tmp_path, tmp_path / "none.gguf").stderr
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{root}", "shallow")
    (tmp_path / "other.bin").write_bytes(b"x")
    assert "this clone is shallow" in origin(tmp_path / "shallow", tmp_path / "other.bin").stderr


def problems(root: Path, name: str, place: float = 0.5) -> list[str]:
    """What verify prints after one byte of a file in the repository was changed; the file is put back."""
    path = root / name
    good = path.read_bytes()
    flip(path, place)
    try:
        done = luthier(root, "verify")
    finally:
        path.write_bytes(good)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


def test_verify_names_the_changed_file_of_a_folder_once_with_the_stages_that_name_it(root: Path) -> None:
    said = problems(root, ADAPTER)
    (named,) = [line for line in said if line.startswith("does not hold: models/adapter has md5")]
    assert "in it adapter_model.safetensors (named by train, " in named
    assert len(said) == 3  # by dvc.lock, by provenance.json, by the statement


@pytest.mark.parametrize("name", ["reports/card/provenance.json", "data/split/train.parquet"])
def test_a_record_or_table_that_cannot_be_read_any_more_is_named_too(root: Path, name: str) -> None:
    said = problems(root, name, 0.9 if name.endswith("json") else 0.9999)
    assert any(line.startswith(f"does not hold: {name} has md5") for line in said)


def test_the_bill_of_materials_is_held_like_all_that_ships(root: Path, released: Path) -> None:
    flip(released / "reports/card/bom.cdx.json")
    assert wrong(released, root / "luthier.pub")[0].startswith(f"{released}/reports/card/bom.cdx.json is ")
