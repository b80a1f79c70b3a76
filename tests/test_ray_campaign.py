"""Campaigns and the quickstart under one real Ray cluster."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestration import quickstart as quickstart_module
from orchestration.campaigns.campaign import Plan, read_campaign, tune
from orchestration.campaigns.execution import SLOT
from orchestration.campaigns.ledger import Ledger
from orchestration.campaigns.settings import CampaignSettings
from orchestration.cli import run_cli
from orchestration.cluster import ray_cluster
from orchestration.config import Experiment, apply_assignments
from orchestration.errors import RequestError
from orchestration.home import Home
from orchestration.preparation import Preparation
from orchestration.recipes import get_recipe
from orchestration.serving.client import request_image
from orchestration.serving.server import check_port
from orchestration.stages import quiet, read_records
from orchestration.tracking import Tracker
from search_spaces.space import Space, load_space

from .ray_support import TINY, TINY_DATA, assignments

pytestmark = pytest.mark.ray_cluster
RANGES = {"batch_size": "8,16"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster(4, {SLOT: 2}):
        yield


def tiny(**changes: object) -> Experiment:
    values = TINY | {"evaluation.protocol": "auto", "evaluation.every_kimg": 0.1} | changes
    return apply_assignments(get_recipe("xmcgan_scenes32"), [f"{name}={value}" for name, value in values.items()])


def plan(base: Experiment, space: Space, trials: int, grace: float, **changes: Any) -> Plan:
    asked = {"trials": trials, "concurrent": 2, "budget_kimg": base.training.kimg, "grace_kimg": grace, **changes}
    objective = {"figure": "validation/fid/scenes-net"}
    return Plan(base, space, CampaignSettings.model_validate({"objectives": [objective], **asked}))


def test_campaign(cluster: None, home: Path) -> None:
    """Trial 0 is the paper's point, only the better trials go on, and every trial is one run in MLflow."""
    base, space = tiny(**{"training.kimg": 0.4}), load_space("xmcgan").choose(ranges=RANGES)
    tracker, wanted = Tracker(home), plan(base, space, 5, 0.1, seed=3)
    campaign = tune(wanted, Home(home), tracker)

    assert len(campaign.trials) == 5
    points = [trial.values for trial in campaign.trials]
    assert points[0] == {"lambda_1": 1.0, "lambda_2": 1.0, "lambda_3": 1.0, "rho_1": 5.0, "tau": 0.1, "batch_size": 16}
    assert len({json.dumps(point, sort_keys=True) for point in points}) == 5
    assert {trial.state for trial in campaign.trials} == {"finished", "stopped"}
    for trial in campaign.trials:
        assert campaign.checkpoint(trial).images_seen == round(1000 * trial.kimg)
        assert (trial.state == "finished") == (trial.kimg >= 0.4)
    best = campaign.best
    finished = [trial.figures[campaign.objective] for trial in campaign.trials if trial.state == "finished"]
    assert best.figures[campaign.objective] == min(finished)

    runs = {run.run_id: run for run in tracker.run_summaries("xmcgan")}
    assert len(runs) == 6
    assert runs[campaign.run_id or ""].status == "FINISHED"
    for trial in campaign.trials:
        run = runs[trial.run_id or ""]
        assert run.parent == campaign.run_id
        assert run.status == {"finished": "FINISHED", "stopped": "KILLED"}[trial.state]
        assert run.metrics["kimg"] == trial.kimg
    assert read_campaign(campaign.folder) == campaign

    # The same request finds it; nothing runs.
    assert tune(wanted, Home(home), tracker) == campaign
    assert len(tracker.run_summaries("xmcgan")) == len(runs)
    # Of another request under its name nothing is run either.
    other = replace(plan(base, space, 6, 0.1, seed=3), given_name=wanted.name)
    with pytest.raises(RequestError, match="settings.trials.*another --name"):
        tune(other, Home(home), tracker)


def test_a_population_copies_weights_and_changes_values(cluster: None, home: Path) -> None:
    """PBT: the worst of three begins each generation from the best one's checkpoint, with other values."""
    base, space = tiny(**{"training.kimg": 0.3}), load_space("xmcgan").choose(["tau", "lambda_1"])
    campaign = tune(plan(base, space, 3, 0.1, scheduler="population", quantile=0.34), Home(home), Tracker(home))
    assert [trial.state for trial in campaign.trials] == ["finished"] * 3
    ledger = Ledger.open(campaign.folder)
    segments = ledger.segments()
    ledger.close()
    copies = [segment for segment in segments if segment.donor is not None]
    assert len(copies) == 2
    for copy in copies:
        donor = next(one for one in segments if (one.trial, one.step) == (copy.donor, copy.step - 1))
        assert copy.donor_digest == donor.digest and copy.values != donor.values
        own = {one.digest for one in segments if one.trial == copy.trial}
        assert donor.digest not in own and len(own) == 3
        history = Tracker(home).run_summaries("xmcgan")
        assert any(run.run_id == campaign.trials[copy.trial].run_id for run in history)


def test_trials_of_two_workers(cluster: None, home: Path) -> None:
    """A trial may be a Ray Train group; one that is stopped has given its workers back, twice in a row."""
    base = tiny(**{"training.kimg": 0.2, "resources.workers": 2})
    space = load_space("xmcgan").choose(["tau"])
    campaign = tune(plan(base, space, 2, 0.1, concurrent=1), Home(home), Tracker(home))
    assert sorted(trial.state for trial in campaign.trials).count("failed") == 0
    assert len(campaign.trials) == 2 and campaign.best.kimg >= 0.2


def test_a_concurrent_sweep_of_a_late_parameter_trains_damsm_and_stream_once(cluster: None, home: Path) -> None:
    """Four values of MirrorGAN's lambda, two at a time; the stage records say what was computed."""
    values: dict[str, object] = {
        "data.source": TINY_DATA,
        "model.resolution": 32,
        "model.generator_channels": 4,
        "model.discriminator_channels": 4,
        "model.stream.resolution": 32,
        "training.kimg": 0.064,
        "training.batch_size": 16,
        "training.log_kimg": 0.032,
        "evaluation.samples": 32,
    }
    for name in ("damsm", "stream"):
        values |= {f"stages.{name}.model.resolution": 32, f"stages.{name}.training.kimg": 0.096}
    base = apply_assignments(
        get_recipe("mirrorgan_scenes"), [f"{name}={json.dumps(value)}" for name, value in values.items()]
    )
    space = load_space("mirrorgan").choose(["stream_weight"])
    campaign = tune(plan(base, space, 4, 0.064, seed=1), Home(home), Tracker(home))
    assert [trial.state for trial in campaign.trials] == ["finished"] * 4
    assert len({trial.checkpoint for trial in campaign.trials}) == 4
    keys = {stage.name: stage.key for stage in Preparation(base, Home(home)).graph()}
    computed = [(record["stage"], record["key"]) for record in read_records(Home(home).stages)]
    assert [computed.count((name, keys[name])) for name in ("vocabulary", "damsm", "stream")] == [1, 1, 1]


def test_quickstart_twice(cluster: None, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main job at toy size: its summary has what is promised, and a second one reuses the first."""
    monkeypatch.setattr(quickstart_module, "get_recipe", lambda name: tiny(**{"training.kimg": 0.4}))
    monkeypatch.setattr(quickstart_module, "TRIAL_KIMG", 0.2)
    monkeypatch.setattr(quickstart_module, "GRACE_KIMG", 0.1)
    tracker, said = Tracker(home), []
    result = quickstart_module.quickstart(Home(home), tracker, "a red house on the grass", said.append, quiet)

    promised = {"png", "champion", "trials", "best_params", "fid_before", "fid_after", "accuracy", "seconds"}
    assert promised | {"mlflow_uri"} <= result.keys()
    assert result["trials"] >= 4
    assert {"background", "colour", "thing", "thing_chance"} <= result["accuracy"].keys()
    assert result["protocol"] == "fid/scenes-net"
    with Image.open(result["png"]) as picture:
        picture.load()
        assert picture.size == (32, 32) and result["checkpoint_digest"] in picture.info.values()
    champion = tracker.champion("xmcgan")
    assert champion is not None and f"xmcgan/{champion.version}" == result["champion"]
    assert champion.tags["t2i.checkpoint_digest"] == result["checkpoint_digest"]
    json.dumps(result)

    first_bytes = Path(result["png"]).read_bytes()
    again = quickstart_module.quickstart(Home(home), tracker, "a red house on the grass", said.append, quiet)
    changing = {"seconds"}
    assert {k: v for k, v in again.items() if k not in changing} == {
        k: v for k, v in result.items() if k not in changing
    }
    assert Path(again["png"]).read_bytes() == first_bytes


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def test_tune_evaluate_show_promote_commands(
    cluster: None, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands, one after the other, as a person would use them."""
    state = ["--home", str(home), "--json"]
    judged = assignments(evaluation__protocol="auto", training__seed=7)
    search = ["--trials", "2", "--kimg", "0.2", "--parameter", "tau", "--range", "tau=0.05:0.2"]
    assert run_cli(["tune", "xmcgan_scenes32", *search, *state, *judged]) == 0
    found = last_json(capsys)
    assert found["trials"] == 2 and 0.05 <= found["best_params"]["tau"] <= 0.2
    assert Path(found["best_checkpoint"]).is_dir()

    assert run_cli(["train", "xmcgan_scenes32", *state, *judged]) == 0
    trained = last_json(capsys)
    run = Path(trained["run"]).name
    assert "validation/fid/scenes-net" in trained["figures"]

    asked = ["--samples", "32", "--untrained", *state]
    assert run_cli(["evaluate", run, *asked]) == 0
    verdict = last_json(capsys)
    assert verdict["figures"]["untrained"]["fid/scenes-net"] > 0
    assert verdict["figures"][run].keys() == verdict["figures"]["untrained"].keys()
    assert verdict["records"][run][0]["drawn"] == 32
    assert run_cli(["evaluate", trained["checkpoint"], *asked]) == 0
    assert last_json(capsys)["figures"] == verdict["figures"]

    sheet = tmp_path / "sheet.png"
    assert run_cli(["show", run, "--out", str(sheet), "--captions", "4", *state]) == 0
    assert len(last_json(capsys)["captions"]) == 4
    with Image.open(sheet) as picture:
        assert picture.width > 500

    # Another test's run may be champion here, and these few pictures do not tell which is better.
    assert run_cli(["promote", run, "--samples", "32", "--seeds", "1", "--force", *state]) == 0
    promoted = last_json(capsys)
    champion = Tracker(home).champion("xmcgan")
    assert champion is not None and champion.version == promoted["version"]
    assert champion.tags["t2i.checkpoint_digest"] == trained["checkpoint_digest"]


def test_serve_command(cluster: None, home: Path, tmp_path: Path) -> None:
    """`t2i serve` on a cluster it joins: pictures, the same bytes twice, and a quiet end on Ctrl-C."""
    import ray

    port = check_port("127.0.0.1", 0)
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with (tmp_path / "err.txt").open("w") as errors:
        server = subprocess.Popen(
            [sys.executable, "-m", "orchestration", "serve", "--home", str(home), "--port", str(port)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        assert f"http://127.0.0.1:{port}" in said, (tmp_path / "err.txt").read_text()
        url = f"http://127.0.0.1:{port}"
        first = request_image(url, "a red house on the grass", seed=3)
        assert first == request_image(url, "a red house on the grass", seed=3)
        assert first != request_image(url, "a red house on the grass", seed=4)
        with pytest.raises(RequestError, match="port"):
            check_port("127.0.0.1", port)
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(240) == 0, (tmp_path / "err.txt").read_text()
    assert "Traceback" not in (tmp_path / "err.txt").read_text()
