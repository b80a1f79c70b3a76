"""A home on S3, over its real protocol to a server on loopback."""

import logging
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.errors import RequestError
from orchestration.remote import copies, store
from tests.remote_support import killed_and_repeated_elsewhere, machine, published, working_copy

moto = pytest.importorskip("moto.server", reason="the server that speaks S3 is absent: pip install 't2i[dev]'")
s3fs = pytest.importorskip("s3fs", reason="s3fs is absent: pip install 't2i[s3]'")


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
    import boto3

    name = "b" + "".join(letter for letter in tmp_path.name.lower() if letter.isalnum())[-40:]
    boto3.client("s3").create_bucket(Bucket=name)
    copies.open_store.cache_clear()
    yield name
    copies.open_store.cache_clear()


def test_killed_it_goes_on_elsewhere(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_and_repeated_elsewhere(f"s3://{bucket}/home", tmp_path, monkeypatch)
