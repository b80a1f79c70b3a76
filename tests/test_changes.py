"""What changed since a campaign was begun is said field by field; and whether its code did."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import search_spaces
from orchestration.campaigns import changes
from orchestration.campaigns.campaign import Plan
from orchestration.campaigns.changes import MOST_FILES, code_files, code_version, differences
from orchestration.campaigns.settings import CampaignSettings, Objective
from search_spaces.space import load_space
from tests.tiny import tiny_experiment

BASE = tiny_experiment("xmcgan")
SPACE = load_space("xmcgan").choose(["tau", "batch_size"], {"tau": "0.05:0.2", "batch_size": "16,32"})
SETTINGS = CampaignSettings(
    trials=4, concurrent=2, budget_kimg=4, grace_kimg=1, objectives=(Objective(figure="validation/fid/scenes-net"),)
)


def header(base: Any = BASE, space: Any = SPACE, settings: Any = SETTINGS, **more: Any) -> dict[str, Any]:
    parts = {"base": base, "space": space, "settings": settings}
    return {name: part.model_dump(mode="json") for name, part in parts.items()} | {"code": "v1", "storage": None} | more


def stored(values: dict[str, Any]) -> dict[str, Any]:
    """As a ledger gives it back."""
    back: dict[str, Any] = json.loads(json.dumps(values))
    return back


def test_the_same_request_is_the_same() -> None:
    assert differences(stored(header()), header()) == []


def test_python_values_equal_what_a_ledger_gives_back() -> None:
    python = {name: part.model_dump() for name, part in {"base": BASE, "space": SPACE, "settings": SETTINGS}.items()}
    assert differences(stored(header()), {**header(), **python}) == []


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (
            header(settings=SETTINGS.model_copy(update={"trials": 16, "seed": 3})),
            ["settings.trials was 4 and is 16", "settings.seed was 0 and is 3"],
        ),
        (header(base=BASE.replace({"training.seed": 9})), ["base.training.seed was 3 and is 9"]),
        (
            header(base=BASE.replace({"data.source": "coco:elsewhere"})),
            ["base.data.source was scenes and is coco:elsewhere"],
        ),
        (
            header(space=SPACE.choose(["tau", "batch_size"], {"tau": "0.05:0.4"})),
            ["space.parameters.tau.high was 0.2 and is 0.4"],
        ),
        (
            header(space=SPACE.choose(["tau", "batch_size"], {"batch_size": "16,64"})),
            ["space.parameters.batch_size.values was [16, 32] and is [16, 64]"],
        ),
        (header(code="v2"), ["the code changed (version v1, now v2)"]),
        (header(storage="sqlite:///x.db"), ["storage was null and is sqlite:///x.db"]),
    ],
    ids=["settings", "seed", "data", "range", "choices", "code", "storage"],
)
def test_what_changed_is_named(now: dict[str, Any], said: list[str]) -> None:
    assert differences(stored(header()), now) == said


def test_a_parameter_that_came_or_went() -> None:
    few = SPACE.choose(["tau"], {"tau": "0.05:0.2"})
    said = differences(stored(header(space=few)), header())
    assert [clause.partition(" (")[0] for clause in said][:1] == ["space.parameters.batch_size is new"]
    said = differences(stored(header()), header(space=few))
    assert said[0].startswith("space.parameters.batch_size is gone (was {")
    assert all(len(clause) < 140 for clause in said)


def test_what_changes_no_result_is_no_change() -> None:
    moved = BASE.replace({"resources.threads": 3, "resources.workers": 2})
    assert differences(stored(header()), header(base=moved)) == []
    assert Plan(moved, SPACE, SETTINGS).name == Plan(BASE, SPACE, SETTINGS).name
    assert Plan(BASE.replace({"training.seed": 7}), SPACE, SETTINGS).name != Plan(BASE, SPACE, SETTINGS).name


def test_what_was_noted_while_it_ran_is_no_change() -> None:
    assert differences({**stored(header()), "run_id": "abc"}, header()) == []


def test_a_field_that_the_older_version_did_not_know() -> None:
    old = stored(header())
    del old["settings"]["quantile"], old["storage"]
    assert differences(old, header()) == ["settings.quantile is new (0.25)", "storage is new (null)"]


def test_true_is_not_one() -> None:
    assert differences({"a": {"b": 1}}, {"a": {"b": True}}) == ["a.b was 1 and is true"]


def test_passwords_are_not_shown() -> None:
    now = header(storage="postgresql://optuna:hunter2@db/optuna")
    [said] = differences(stored(header()), now)
    assert "hunter2" not in said and "postgresql://optuna:***@db/optuna" in said
    [said] = differences(stored(now), header())
    assert "hunter2" not in said


def test_changed_files_are_named() -> None:
    before = {"models/a.py": "1", "models/b.py": "1", "orchestration/c.py": "1"}
    after = {"models/a.py": "1", "models/b.py": "2", "orchestration/d.py": "1"}
    said = differences(header(code=before), header(code=after))
    assert said == ["the code changed: models/b.py, orchestration/c.py, orchestration/d.py"]
    many = {f"models/{index:02}.py": "x" for index in range(MOST_FILES + 3)}
    [clause] = differences(header(code={}), header(code=many))
    assert clause.endswith(f"models/{MOST_FILES - 1:02}.py and 3 more")
    assert differences(header(code=before), header(code="v9")) == [
        f"the code changed (version {code_version(before)}, now v9)"
    ]
    old = header()
    del old["code"]
    assert differences(old, header()) == ["the code changed (version unknown, now v1)"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=6,
)


@settings(deadline=None, max_examples=100)
@given(old=st.dictionaries(st.sampled_from("abc"), JSON), new=st.dictionaries(st.sampled_from("abc"), JSON))
def test_there_is_a_clause_exactly_where_something_differs(old: dict[str, Any], new: dict[str, Any]) -> None:
    same = all(json.dumps(old.get(name, "?"), sort_keys=True) == json.dumps(new[name], sort_keys=True) for name in new)
    found = differences(old, new)
    assert (found == []) == same
    assert all("\n" not in clause for clause in found)


class TestCode:
    def test_every_source_file_has_a_part_in_it(self) -> None:
        files = code_files()
        for name in (
            "models/contract.py",
            "models/xmcgan/system.py",
            "orchestration/training/loop.py",
            "orchestration/campaigns/changes.py",
            "search_spaces/space.py",
            "search_spaces/xmcgan.yaml",
        ):
            assert name in files
        assert not [name for name in files if "__pycache__" in name or name.startswith(("tests", "benchmarks"))]

    def test_it_is_the_same_from_another_folder_and_process(self, tmp_path: Path) -> None:
        code = "from orchestration.campaigns.changes import code_version; print(code_version())"
        root = Path(changes.__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={"PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == code_version()
        assert len(code_version()) == 16

    def test_one_byte_anywhere_is_another_version(self) -> None:
        files = code_files()
        name = "models/contract.py"
        assert code_version({**files, name: "0" * 16}) != code_version()
        assert code_version({key: value for key, value in files.items() if key != name}) != code_version()
        renamed = {("models/other.py" if key == name else key): value for key, value in files.items()}
        assert code_version(renamed) != code_version()

    def test_files_are_read_as_they_are(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = tmp_path / "search_spaces"
        (package / "deep").mkdir(parents=True)
        (package / "deep" / "a.py").write_text("x = 1\n")
        (package / "notes.txt").write_text("no part")
        monkeypatch.setattr(search_spaces, "__path__", [str(package)])
        monkeypatch.setattr(changes, "PACKAGES", (search_spaces,))
        read = code_files.__wrapped__
        first = read()
        assert list(first) == ["search_spaces/deep/a.py"]
        (package / "deep" / "a.py").write_text("x = 2\n")
        assert code_version(read()) != code_version(first)
