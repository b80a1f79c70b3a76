"""A home on S3, over its real protocol to a server on loopback."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.campaigns.ledger import FILE
from orchestration.campaigns.report import read_folder
from orchestration.campaigns.segments import taking
from orchestration.errors import RequestError
from orchestration.home import exclusive
from orchestration.remote import copies, store
from orchestration.remote.store import Store
from orchestration.stages import ensure
from tests.cli_support import T2i, runner
from tests.remote_support import killed_and_repeated_elsewhere, machine, made_by, whole_in
from tests.report_support import halving_campaign
from tests.test_stages import Work, stage_of

moto = pytest.importorskip("moto.server", reason="the server that speaks S3 is absent: pip install 't2i[dev]'")
boto3 = pytest.importorskip("boto3", reason="boto3 is absent: pip install 't2i[dev]'")
pytest.importorskip("s3fs", reason="s3fs is absent: pip install 't2i[s3]'")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    values = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    name = "b" + "".join(letter for letter in tmp_path.name.lower() if letter.isalnum())[-40:]
    boto3.client("s3").create_bucket(Bucket=name)
    copies.open_store.cache_clear()
    yield name
    copies.open_store.cache_clear()


def test_killed_it_goes_on_elsewhere(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_and_repeated_elsewhere(f"s3://{bucket}/home", tmp_path, monkeypatch)


def test_what_is_published_is_there_under_its_name(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = machine(f"s3://{bucket}/deep/er/", tmp_path / "cache", monkeypatch)
    made_by(home, 1, 2)
    client = boto3.client("s3")
    found = {entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]}
    assert found == {
        "deep/er/runs/run/metrics.jsonl",
        "deep/er/runs/run/writer.json",
        *(
            f"deep/er/runs/run/checkpoints/kimg-00000{kimg}.000/{name}"
            for kimg in (1, 2)
            for name in ("manifest.json", "net.safetensors", "text/words.json")
        ),
    }
    other = machine(f"s3://{bucket}/deep/er", tmp_path / "other", monkeypatch)
    with exclusive(other.runs / "run"):
        assert whole_in(other.runs / "run") == ["kimg-000001.000", "kimg-000002.000"]
        with pytest.raises(RequestError, match="is being worked on by process"), exclusive(home.runs / "run"):
            pass
    ensure(stage_of(Work()), home.stages)
    work = Work()
    ensure(stage_of(work), other.stages)
    assert work.times == 0


def test_only_one_of_many_takes_the_lease(bucket: str) -> None:
    """The store itself refuses the second: an object is made only where there is none."""
    opened = Store(f"s3://{bucket}", "--home", "mend it")
    opened.create("lease", b"first")
    with pytest.raises(FileExistsError):
        opened.create("lease", b"second")
    assert opened.read("lease") == b"first"


@pytest.fixture
def t2i(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> T2i:
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "ATTEMPTS", 2)
    return runner(tmp_path / "home", tmp_path / "here", monkeypatch, capsys)


def test_a_fresh_machine_reports_a_campaign(
    bucket: str, t2i: T2i, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trials' curves and pictures are in the page, although none of it was ever here."""
    url = f"s3://{bucket}/home"
    theirs = machine(url, tmp_path / "theirs", monkeypatch)
    campaign = theirs.campaigns / "halved"
    with exclusive(campaign):
        halving_campaign(campaign).ledger.close()
        for trial in (campaign / "trials").iterdir():
            with taking(trial, True):
                pass
    wanted = read_folder(campaign)
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))
    page = tmp_path / "page.html"
    assert t2i("report", "halved", "--home", url, "--out", str(page), "--json").json["trials"] == 14
    shown = page.read_text()
    best = wanted.records[wanted.ranked[0].number]
    assert best.picture().uri in shown and "no picture was drawn" not in shown
    [ledger] = (tmp_path / "cache").rglob(FILE)
    assert not ledger.with_name("trials").exists(), "what is only read is kept apart from what is worked on"


COMMAND = ("train", "xmcgan_scenes32")


def test_no_such_bucket(bucket: str, t2i: T2i) -> None:
    t2i(*COMMAND, "--home", "s3://no-such-bucket/x").refused(
        "--home=s3://no-such-bucket/x cannot be used (it is not there", "check the bucket"
    )


def test_no_credentials(bucket: str, t2i: T2i, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    t2i(*COMMAND, "--home", f"s3://{bucket}/x").refused("cannot be used (it cannot be written to", "credentials")


def test_nobody_answers(bucket: str, t2i: T2i, closed_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", closed_uri)
    t2i(*COMMAND, "--home", f"s3://{bucket}/x").refused("cannot be used (it does not answer", closed_uri)
