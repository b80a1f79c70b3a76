"""The files of the page over HTTP: what is sent, and that nothing else is."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.requests import Request

from orchestration.serving.endpoint import create_http_app
from orchestration.serving.page_files import PageFiles
from tests.serving_support import FakeBackend


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(create_http_app(FakeBackend()))


def test_the_page_can_load_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
    assert (page.headers["Referrer-Policy"], page.headers["X-Content-Type-Options"]) == ("no-referrer", "nosniff")
    assert client.get("/page/index.html").content == page.content
    assert client.head("/").headers["Content-Length"] == str(len(page.content))
    known = client.get("/", headers={"If-None-Match": f'"other", W/{page.headers["ETag"]}'})
    assert (known.status_code, known.content, known.headers["ETag"]) == (304, b"", page.headers["ETag"])


@pytest.mark.parametrize(
    "file",
    [
        "..%2fendpoint.py",
        "%2e%2e/endpoint.py",
        "endpoint.py",
        "%2e%2e",
        "%2e",
        "%00",
        "index.html/",
        "index.html%00.js",
    ],
)
def test_nothing_else_is_a_file_of_the_page(client: TestClient, file: str) -> None:
    reply: Any = client.get(f"/page/{file}")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


def test_only_files_of_a_page_are_read(tmp_path: Path) -> None:
    for name in ("index.html", "a.css", "b.js", "c.svg", "notes.txt", ".env", "key.pem"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.js").mkdir()
    files = PageFiles.read(tmp_path)
    request = Request({"type": "http", "headers": []})
    found = {
        name: reply.media_type
        for path in tmp_path.iterdir()
        if (reply := files.reply(name := path.name, request)) is not None
    }
    assert found == {
        "index.html": "text/html; charset=utf-8",
        "a.css": "text/css; charset=utf-8",
        "b.js": "text/javascript; charset=utf-8",
        "c.svg": "image/svg+xml; charset=utf-8",
    }
    assert PageFiles.read(tmp_path / "none").reply("index.html", request) is None
