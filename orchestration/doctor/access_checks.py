"""Who may come in: tokens, the file that a token is read from, and ports that listen."""

from collections.abc import Iterator

from orchestration.doctor.facts import Access, Facts, NodeFacts, Port
from orchestration.doctor.finding import NOTE, REFUSE, WARN, Finding, grouped, listed, names

TOKEN_ON = "start Ray on every node with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, and end what runs without"
UNAUTHORIZED, FAULTS = (401, 403), 400
"""Of HTTP: codes for a missing token, and from which code on nothing was answered."""
CODE_ROLES = ("GCS", "raylet", "Ray client", "dashboard", "agent", "worker")
"""Who reaches these runs code, unless a token is asked for."""
DOORS = ("dashboard", "Ray client")
"""Made for people outside; the other ports nodes need among themselves."""
UNGUARDED = ("metrics", "dashboard metrics", "autoscaler metrics")
"""Ray asks no token here."""


def check_tokens(facts: Facts) -> Iterator[Finding]:
    """A cluster that answers without a token is refused."""
    head = names(node for node in facts.nodes if node.head)
    jobs = facts.jobs
    if jobs is not None and jobs.code is not None and jobs.code < FAULTS:
        yield Finding(
            REFUSE,
            "tokens",
            f"the Jobs API at {jobs.url} answers without a token (HTTP {jobs.code}): who reaches it runs code",
            head,
            TOKEN_ON,
        )
    if jobs is not None and (jobs.code is None or (jobs.code >= FAULTS and jobs.code not in UNAUTHORIZED)):
        reason = jobs.reason if jobs.code is None else f"it answers HTTP {jobs.code}"
        yield Finding(
            WARN,
            "tokens",
            f"the Jobs API {f'at {jobs.url} ' if jobs.url else ''}cannot be asked ({reason}): t2i submit and t2i "
            "tune need it",
            head,
            "start the head with ray start --include-dashboard=true --dashboard-host=127.0.0.1",
        )
    if facts.gcs_open:
        yield Finding(
            REFUSE, "tokens", "Ray itself (GCS) answers without a token: who reaches it runs code", head, TOKEN_ON
        )
    off = names(node for node, access in facts.having("access", Access) if access.mode.lower() != "token")
    if off and not facts.gcs_open:
        yield Finding(
            WARN,
            "tokens",
            "RAY_AUTH_MODE is not token in the environment that Ray was started with",
            off,
            "set RAY_AUTH_MODE=token there: ray job submit sends no token without it",
        )


def check_token_files(facts: Facts) -> Iterator[Finding]:
    """A token that others may read is none."""
    seen: list[tuple[str, Access]] = [(node.name, access) for node, access in facts.having("access", Access)]
    if isinstance(facts.client, Access):
        seen.append(("this machine", facts.client))
    found: dict[tuple[str, int], list[str]] = {}
    for name, access in seen:
        if access.token_file and access.token_mode & 0o077:
            found.setdefault((access.token_file, access.token_mode), []).append(name)
    for (path, mode), where in found.items():
        yield Finding(
            REFUSE if mode & 0o007 else WARN,
            "token file",
            f"{path} can be read by others (mode {mode:04o})",
            tuple(dict.fromkeys(where)),
            f"chmod 600 {path}",
        )


def check_ports(facts: Facts) -> Iterator[Finding]:
    """Ports that other machines reach."""
    token_off = bool(facts.gcs_open) or (facts.jobs is not None and facts.jobs.code == 200)
    known = list(facts.having("access", Access))
    doors = [(node, _shown(_open(access, DOORS))) for node, access in known if _open(access, DOORS)]
    for ports, where in grouped(doors):
        yield Finding(
            REFUSE if token_off else NOTE,
            "ports",
            f"{ports} can be reached from other machines" + (", and no token is asked for" if token_off else ""),
            where,
            TOKEN_ON if token_off else "let only those in who use it: bind it to 127.0.0.1, or a firewall",
        )
    serving = [(node, _shown(_open(access, ("Serve proxy",)))) for node, access in known]
    for ports, where in grouped((node, ports) for node, ports in serving if ports):
        yield Finding(
            NOTE,
            "ports",
            f"{ports} can be reached from other machines: tokens of Ray do not guard it",
            where,
            "have T2I_SERVE_TOKEN in the environment of every node, and TLS before it",
        )
    yield from _outside(known, token_off)
    plain = names(node for node, access in known if _open(access, UNGUARDED))
    if plain:
        yield Finding(
            NOTE,
            "ports",
            "Ray's metrics can be read from other machines, and ask for no token",
            plain,
            "let only Prometheus reach them, by a firewall or a NetworkPolicy",
        )


def _outside(known: list[tuple[NodeFacts, Access]], token_off: bool) -> Iterator[Finding]:
    """Ports on addresses that the internet routes."""
    for node, access in known:
        if not access.public:
            continue
        ports = [port for port in access.ports if port.everywhere or port.address in access.public]
        if ports:
            harm = any(port.role in CODE_ROLES for port in ports)
            yield Finding(
                REFUSE if token_off and harm else WARN,
                "ports",
                f"{_shown(ports)} listen on {listed(access.public)}, an address of the internet",
                (node.name,),
                "close them in the cloud's firewall, or start Ray with --node-ip-address on the private network",
            )


def _open(access: Access, roles: tuple[str, ...]) -> list[Port]:
    return [port for port in access.ports if port.role in roles and not port.loopback]


def _shown(ports: list[Port]) -> str:
    places = sorted({f"{port.role} ({port.address.removeprefix('::ffff:')} port {port.port})" for port in ports})
    return listed(places)
