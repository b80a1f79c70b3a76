"""What the nodes share: the home, the store of stages, MLflow and Optuna's storage."""

from collections.abc import Iterator

from orchestration.doctor.facts import GIB, Asked, Facts, NodeFacts, Reached, Storage, shown_url
from orchestration.doctor.finding import NOTE, REFUSE, WARN, Finding, grouped, listed, names, size_text

LEAST_FREE = GIB
SQLITE = "sqlite"
STORE_MENDS = {
    "absent": "mount the shared file system there at the same path, or name another folder",
    "not a folder": "move what is there away, or name another folder",
    "read-only": "mount it for writing (rw)",
    "denied": "let the user that Ray runs as write there: chown, the export's options, or the bucket's policy",
    "full": "free some space or raise the quota: t2i stages gc frees stages that nothing needs",
    "no driver": "install the file system's package in the image, such as s3fs or gcsfs",
    "failed": "mend what is said, or name another",
}
SHARED_MENDS = {
    "home": "mount one shared file system (NFS, Lustre, EFS, Filestore) there on every node, before Ray starts",
    "stages": "name a URL that is one place for all, such as s3://BUCKET/stages, or a folder that all nodes mount",
}


def check_home(facts: Facts) -> Iterator[Finding]:
    """The home can be written from every node, and is one folder."""
    yield from _check_store(facts, "home", f"home {facts.asked.home}")


def check_stages(facts: Facts) -> Iterator[Finding]:
    """The store of stages can be written from every node, and is one place."""
    if facts.asked.stages is not None:
        yield from _check_store(facts, "stages", f"stages {shown_url(facts.asked.stages)}")


def _check_store(facts: Facts, section: str, what: str) -> Iterator[Finding]:
    known: list[tuple[NodeFacts, Storage]] = list(facts.having(section, Storage))
    for status, mend in STORE_MENDS.items():
        failed = [(node, store) for node, store in known if store.status == status]
        for reason, where in grouped((node, store.reason) for node, store in failed):
            yield Finding(REFUSE, section, f"{what} is not usable there: {_told(status, reason)}", where, mend)
    wrote = [(node, store) for node, store in known if store.status == "ok"]
    yield from _check_shared(section, what, wrote)
    for node, store in wrote:
        if store.total and store.free < LEAST_FREE:
            mend = STORE_MENDS["full"]
            yield Finding(WARN, section, f"{what} has only {size_text(store.free)} left", (node.name,), mend)
        if len(facts.nodes) == 1 and section == "home" and store.tried and store.tried != facts.asked.home:
            found = f"{what} is not there yet; {store.tried}, where it will be made, can be written to"
            yield Finding(NOTE, section, found, (node.name,), "nothing: the first command makes it")


def _told(status: str, reason: str) -> str:
    return reason if status in ("absent", "not a folder", "failed") else f"{status} ({reason})"


def _check_shared(section: str, what: str, wrote: list[tuple[NodeFacts, Storage]]) -> Iterator[Finding]:
    """What one node wrote, all must have read."""
    everyone = set(names(node for node, _ in wrote))
    apart = [(node, everyone - set(store.seen)) for node, store in wrote if everyone - set(store.seen)]
    if not apart:
        return
    systems = sorted({store.filesystem for _, store in wrote if store.filesystem})
    on = f" (on {listed(systems)})" if systems else ""
    unseen = {node.name: missing for node, missing in apart}
    alone = [name for name, missing in unseen.items() if missing == everyone - {name}]
    where = tuple(alone) if len(alone) < len(everyone) else tuple(sorted(everyone))
    yield Finding(
        REFUSE,
        section,
        f"{what} is not one place: what other nodes write is not seen there{on}",
        where or tuple(unseen),
        SHARED_MENDS[section],
    )


def check_mlflow(facts: Facts) -> Iterator[Finding]:
    """MLflow answers every node."""
    uri = facts.asked.mlflow
    yield from _check_reached(
        facts, "mlflow", f"MLflow at {_mlflow_place(facts.asked)}", "name a server with --mlflow-uri http://HOST:PORT"
    )
    if len(facts.nodes) > 1 and (uri is None or uri.startswith(SQLITE)):
        yield Finding(
            WARN,
            "mlflow",
            f"MLflow is a file of SQLite ({_mlflow_place(facts.asked)}), whose locks file systems over a network lose",
            (),
            "run one MLflow server on PostgreSQL, and name it with --mlflow-uri http://HOST:PORT",
        )


def _mlflow_place(asked: Asked) -> str:
    return f"{asked.home}/mlflow.db" if asked.mlflow is None else shown_url(asked.mlflow)


def check_optuna(facts: Facts) -> Iterator[Finding]:
    """Optuna's storage answers every node."""
    url = facts.asked.optuna
    if url is None:
        return
    yield from _check_reached(facts, "optuna", f"Optuna's storage {shown_url(url)}", "name another with --optuna")
    if len(facts.nodes) > 1 and url.startswith(SQLITE):
        yield Finding(
            WARN,
            "optuna",
            f"Optuna's storage {url} is a file, whose locks file systems over a network lose",
            (),
            "use PostgreSQL: postgresql+psycopg://USER@HOST/optuna",
        )


def _check_reached(facts: Facts, section: str, what: str, otherwise: str) -> Iterator[Finding]:
    known: list[tuple[NodeFacts, Reached]] = list(facts.having(section, Reached))
    lacking = [(node, reached.reason) for node, reached in known if reached.status == "no driver"]
    for reason, where in grouped(lacking):
        mend = "install the database's driver in the image, such as psycopg for postgresql+psycopg://"
        yield Finding(REFUSE, section, f"{what} needs a driver that is not installed ({reason})", where, mend)
    closed = [(node, reached.reason) for node, reached in known if reached.status == "unreachable"]
    for reason, where in grouped(closed):
        mend = f"start it and open the way there, or {otherwise}"
        yield Finding(REFUSE, section, f"{what} cannot be reached ({reason})", where, mend)
    if known and all(reached.status == "not yet" for _, reached in known):
        every = names(node for node, _ in known)
        yield Finding(NOTE, section, f"{what} is not there yet", every, "nothing: the first command makes it")
