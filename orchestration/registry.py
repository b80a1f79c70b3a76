"""The connection to MLflow, and its model registry: versions of checkpoints, and which one is the champion.

Only `MlflowClient` is used, never the fluent interface, which keeps state per thread and starts runs nobody asked for.
"""

import logging
import os
import re
import shutil
import socket
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from orchestration.errors import RequestError, RunError
from orchestration.stages import file_sha256, short_hash

ARTIFACTS = "mlartifacts"
CHAMPION = "champion"
DIGEST_TAG = "checkpoint_digest"
PATH_TAG = "t2i.artifact_path"
PREVIOUS_TAG = "t2i.previous_champion"

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https")

REACH_S = 3.0
LOCK_S = 60.0
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Its own defaults keep a caller waiting for minutes when a server is down.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    # Long enough for a server that stores a large checkpoint before it answers.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # Standard output belongs to the commands: its last line may be JSON.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a registered model. `source` is the URI of its checkpoint folder."""

    model: str
    version: int
    run_id: str
    tags: Mapping[str, str]
    source: str


class Connection:
    """MLflow at one URI, reached on the first call. Every call raises RunError when it cannot be reached."""

    def __init__(self, home: Path, uri: str | None = None) -> None:
        """home: the state folder. uri: an http(s) server or a database; none: `sqlite:///<home>/mlflow.db`.

        Raises RequestError for a URI that MLflow cannot use. Nothing is contacted here.
        """
        self.home = home.absolute()
        self._uri = _checked(f"sqlite:///{self.home / 'mlflow.db'}" if uri is None else uri)
        self._client: Any = None
        self._connecting = threading.Lock()

    @property
    def uri(self) -> str:
        """The tracking URI, which is the registry's too."""
        return self._uri

    @property
    def _scheme(self) -> str:
        return _scheme(self._uri)

    @contextmanager
    def _talk(self, doing: str) -> Iterator[Any]:
        """A client for a few requests. Whatever MLflow raises becomes one sentence that says what was being done."""
        try:
            yield self._connect()
        except (RequestError, RunError):
            raise
        except Exception as error:
            code = getattr(error, "error_code", None)
            wrong = code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
            sentence = _hide_password(
                f"MLflow at {self._uri} refused {doing} ({_reason(error)}): correct that and repeat"
                if wrong
                else f"MLflow at {self._uri} failed while {doing} ({_reason(error)}): mend that and repeat"
            )
            raise (RequestError if wrong else RunError)(sentence) from error

    def _connect(self) -> Any:
        try:
            if self._scheme in SERVERS:
                _reach_server(self._uri)
            with self._connecting:
                if self._client is None:
                    self._client = self._open()
                return self._client
        except Exception as error:
            mend = {
                "http": "start the server",
                "https": "start the server",
                "sqlite": "make sure that it is a database in a folder that can be written",
            }.get(self._scheme, "start the database and install its driver")
            raise RunError(
                _hide_password(
                    f"MLflow at {self._uri} cannot be reached ({_reason(error)}): {mend}, "
                    "or name another tracking URI, and repeat"
                )
            ) from error

    def _open(self) -> Any:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.home.mkdir(parents=True, exist_ok=True)
        # Two processes that create the tables of one new database at the same moment would both fail.
        with self._locked("connect"):
            if self._scheme in DATABASES:
                _reach_database(self._uri)
            from mlflow.tracking import MlflowClient

            # Its notes on migrating tables would stand among a command's own sentences.
            logging.getLogger("mlflow").setLevel(logging.WARNING)
            return MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    def _locked(self, what: str) -> FileLock:
        """A lock among the processes that use this home. Never taken twice in one call."""
        self.home.mkdir(parents=True, exist_ok=True)
        return FileLock(self.home / f".mlflow-{what}.lock", timeout=LOCK_S)

    def _artifact_location(self, experiment: str) -> str | None:
        """Where a new experiment's artifacts go; none: the server decides."""
        if self._scheme in SERVERS:
            return None
        readable = re.sub(r"[^\w.-]", "_", experiment)[:40]
        return (self.home / ARTIFACTS / f"{readable}-{short_hash(experiment)[:8]}").as_uri()


class Registry(Connection):
    """Registered models: each version is one checkpoint, named by its digest; an alias names the champion."""

    def register(self, model: str, run_id: str, checkpoint: Path, tags: Mapping[str, str]) -> int:
        """Uploads every file of the `checkpoint` folder to the run and registers it; returns the version.

        The digest is `tags["checkpoint_digest"]`, or that of the files. A digest that this model has already keeps its
        version and uploads nothing. The artifact path is `checkpoint/<digest>`: another checkpoint of the same run must
        not overwrite what an earlier version names. Raises RequestError for a folder that is absent or empty.
        """
        if not checkpoint.is_dir() or not any(path.is_file() for path in checkpoint.rglob("*")):
            raise RequestError(f"there is no checkpoint to register in {checkpoint}: name a checkpoint folder")
        digest = tags.get(DIGEST_TAG) or _folder_digest(checkpoint)
        artifact_path = f"checkpoint/{_folder_name(digest)}"
        with self._talk(f"registering {checkpoint.name} as {model}") as client:
            known = _with_digest(self._versions(client, model), digest)
            if known is not None:
                return known.version
            client.log_artifacts(run_id, str(checkpoint), artifact_path)
            source = f"{client.get_run(run_id).info.artifact_uri.rstrip('/')}/{artifact_path}"
            with self._locked("registry"):
                known = _with_digest(self._versions(client, model), digest)
                if known is not None:
                    return known.version
                if _registered(client, model) is None:
                    client.create_registered_model(model)
                created = client.create_model_version(
                    model,
                    source,
                    run_id,
                    tags={**tags, DIGEST_TAG: digest, PATH_TAG: artifact_path},
                    await_creation_for=LOCK_S,
                )
                return int(created.version)

    def models(self) -> list[str]:
        """The names of all registered models."""
        with self._talk("listing the registered models") as client:
            return sorted(found.name for found in every(client.search_registered_models))

    def aliased(self, model: str) -> dict[str, int]:
        """The version that each alias of a model names; empty for a model that is not registered."""
        with self._talk(f"looking up the aliases of {model}") as client:
            registered = _registered(client, model)
            return {} if registered is None else {name: int(number) for name, number in registered.aliases.items()}

    def folder_here(self, version: ModelVersion) -> Path | None:
        """The version's checkpoint folder if its artifacts are on this machine; nothing is fetched or checked."""
        local = self._local_folder(version.source)
        return local if local is not None and local.is_dir() else None

    def versions(self, model: str) -> list[ModelVersion]:
        """Every version of a model, oldest first; empty for a model that is not registered."""
        with self._talk(f"listing the versions of {model}") as client:
            return self._versions(client, model)

    def set_champion(self, model: str, version: int) -> None:
        """Moves the alias `champion` to a version, whose tag then names the version that had it before.

        Raises RequestError when there is no such version.
        """
        with self._talk(f"making version {version} of {model} the champion") as client, self._locked("registry"):
            known = [each.version for each in self._versions(client, model)]
            if version not in known:
                there = f"there are {', '.join(map(str, known))}" if known else "none is registered"
                raise RequestError(f"model {model} has no version {version} in the registry: {there}")
            previous = _champion_number(client, model)
            if previous == version:
                return
            # The tag first: if only one of the two is written, the champion has not changed.
            if previous is not None:
                client.set_model_version_tag(model, str(version), PREVIOUS_TAG, str(previous))
            client.set_registered_model_alias(model, CHAMPION, str(version))

    @contextmanager
    def deciding(self, model: str) -> Iterator[None]:
        """One process of this home at a time decides on champions: what it reads of them stays so until it has written.

        Raises RunError when another has it for a minute.
        """
        lock = self._locked("champion")
        try:
            lock.acquire()
        except Timeout as error:
            raise RunError(
                f"another process has been deciding on the champion of {model} for {LOCK_S:g} s: wait for it and repeat"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def tag_version(self, model: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version, in place of those of the same name."""
        with self._talk(f"setting tags of version {version} of {model}") as client:
            for name, value in tags.items():
                client.set_model_version_tag(model, str(version), name, value)

    def champion(self, model: str) -> ModelVersion | None:
        """The version that carries the alias `champion`, or none."""
        with self._talk(f"looking up the champion of {model}") as client:
            number = _champion_number(client, model)
            return None if number is None else _version(client.get_model_version(model, str(number)))

    def champions(self) -> dict[str, ModelVersion]:
        """The champion of every model that has one, by the model's name."""
        with self._talk("listing the champions") as client:
            aliases = {found.name: found.aliases.get(CHAMPION) for found in every(client.search_registered_models)}
            return {
                model: _version(client.get_model_version(model, str(number)))
                for model, number in sorted(aliases.items())
                if number is not None
            }

    def fetch(self, version: ModelVersion, destination: Path) -> Path:
        """The version's checkpoint folder on this machine.

        Artifacts in a local folder are not copied: the result is that folder. Others are downloaded once to a folder in
        `destination` that is named by the digest. Raises RunError when the artifacts are gone. The files are not
        checked here: whoever loads the checkpoint does that.
        """
        name = f"version {version.version} of {version.model}"
        gone = (
            f"the checkpoint of {name} is not at {version.source} any more: register it again or choose another version"
        )
        local = self._local_folder(version.source)
        if local is not None:
            if not local.is_dir() or not any(local.iterdir()):
                raise RunError(gone)
            return local
        folder = destination / _folder_name(version.tags.get(DIGEST_TAG) or short_hash(version.source))
        if folder.is_dir():
            return folder
        with self._talk(f"downloading {name}") as client:
            destination.mkdir(parents=True, exist_ok=True)
            working = Path(tempfile.mkdtemp(dir=destination, prefix=f".{folder.name}-"))
            try:
                path = version.tags.get(PATH_TAG, "checkpoint")
                if not client.list_artifacts(version.run_id, path):
                    raise RunError(gone)
                _move_once(Path(client.download_artifacts(version.run_id, path, str(working))), folder)
            finally:
                shutil.rmtree(working, ignore_errors=True)
        return folder

    def _versions(self, client: Any, model: str) -> list[ModelVersion]:
        if _registered(client, model) is None:
            return []
        found = every(client.search_model_versions, filter_string=f"name={quoted(model)}")
        return sorted((_version(each) for each in found), key=lambda each: each.version)

    def _local_folder(self, source: str) -> Path | None:
        """The folder of a local source; none for a remote one."""
        parts = urlsplit(source)
        if parts.scheme not in ("", "file"):
            return None
        path = Path(unquote(parts.path) if parts.scheme else source)
        if not path.is_dir():
            # A home that was moved: the database still names the old place.
            moved = self.home / ARTIFACTS / str(path).rpartition(f"/{ARTIFACTS}/")[2]
            return moved if moved.is_dir() else path
        return path


def every(search: Callable[..., Any], **arguments: Any) -> list[Any]:
    """All pages of one of the client's searches."""
    found: list[Any] = []
    token = None
    while True:
        page = search(**arguments, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def quoted(value: str) -> str:
    """A string as MLflow's filters read it. Raises RequestError: they have no escape for both quotes in one string."""
    if "'" in value and '"' in value:
        raise RequestError(f"{value!r} holds both kinds of quotes and cannot be looked up: leave one out")
    return f'"{value}"' if "'" in value else f"'{value}'"


def _scheme(uri: str) -> str:
    return uri.partition(":")[0].partition("+")[0].lower()


def _checked(uri: str) -> str:
    scheme = _scheme(uri)
    if "://" not in uri or scheme not in DATABASES + SERVERS:
        raise RequestError(
            _hide_password(
                f"tracking URI {uri!r} is of no kind that MLflow can use: give http(s)://HOST:PORT, sqlite:///PATH or "
                "the URI of a postgresql, mysql or mssql database"
            )
        )
    if scheme in SERVERS:
        try:
            valid = bool(urlsplit(uri).hostname) and urlsplit(uri).port != 0
        except ValueError:
            valid = False
        if not valid:
            raise RequestError(_hide_password(f"tracking URI {uri!r} names no server: write it as http://HOST:PORT"))
    if scheme == "sqlite":
        path = uri.partition(":///")[2]
        if not path or path.startswith(":memory:"):
            raise RequestError(f"tracking URI {uri!r} names no file: write it as sqlite:///PATH")
        if set("?#%") & set(path):
            raise RequestError(f"tracking URI {uri!r} holds one of ? # % in its path: choose a folder without them")
        # A worker has another working folder.
        return f"sqlite:///{Path(path).absolute()}"
    return uri


def _reach_server(uri: str) -> None:
    """Raises OSError within seconds when nothing listens, which a request alone would need minutes for."""
    parts = urlsplit(uri)
    host = parts.hostname or ""
    if {parts.scheme, "all"} & urllib.request.getproxies().keys() and not urllib.request.proxy_bypass(host):
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((host, port), timeout=REACH_S).close()


def _reach_database(uri: str) -> None:
    """Raises at once what MLflow would try again for 100 seconds."""
    import sqlalchemy

    arguments = {"connect_timeout": int(REACH_S)} if _scheme(uri) in ("postgresql", "mysql") else {}
    engine = sqlalchemy.create_engine(uri, connect_args=arguments)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _reason(error: BaseException) -> str:
    """One short line: MLflow's own words where it has a reason, else what lies at the bottom of the chain."""
    seen = {id(error)}
    while getattr(error, "error_code", "INTERNAL_ERROR") == "INTERNAL_ERROR":
        cause = error.__cause__ or error.__context__
        if cause is None or id(cause) in seen:
            break
        seen.add(id(cause))
        error = cause
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."


def _hide_password(sentence: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//***@", sentence)


def _folder_digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return short_hash({str(path.relative_to(folder)): file_sha256(path) for path in files})


def _folder_name(digest: str) -> str:
    """A digest as a folder name: hex digits stay what they are, anything else is hashed."""
    return digest[:16] if re.fullmatch(r"[0-9A-Za-z]{16,}", digest) else short_hash(digest)


def _move_once(source: Path, target: Path) -> None:
    try:
        source.replace(target)
    except OSError:
        # Another process has fetched the same digest meanwhile.
        if not target.is_dir():
            raise


def _with_digest(versions: list[ModelVersion], digest: str) -> ModelVersion | None:
    return next((each for each in versions if each.tags.get(DIGEST_TAG) == digest), None)


def _registered(client: Any, model: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _champion_number(client: Any, model: str) -> int | None:
    registered = _registered(client, model)
    number = None if registered is None else registered.aliases.get(CHAMPION)
    return None if number is None else int(number)


def _version(found: Any) -> ModelVersion:
    return ModelVersion(
        model=found.name,
        version=int(found.version),
        run_id=found.run_id or "",
        tags=dict(found.tags),
        source=found.source,
    )
