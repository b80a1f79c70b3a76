"""Asking a Ray cluster whether it is there and lets us in, before Ray itself tries: that takes it 20 s to 4 minutes."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestration.errors import RequestError

FORM = "HOST:PORT of its head (Ray's own default is port 6379), ray://HOST:PORT or auto"
KNOCK_S, ANSWER_S = 5.0, 30.0
"""Seconds for a machine to take a connection, and for what listens there to say what it is: a head may be busy."""
CLIENT = "ray://"
TOKEN_MEND = "give its token in RAY_AUTH_TOKEN, or in a file that RAY_AUTH_TOKEN_PATH names"


def checked_address(text: str, where: str = "--address", command: str = "doctor") -> str:
    """An address that Ray can join: HOST:PORT, ray://HOST:PORT or auto. Raises RequestError for any other.

    where: what the address was given with, and command: to what, for the sentence.
    """
    if text.startswith(("http://", "https://")):
        raise RequestError(
            f"{where} {text} is of the Jobs API, and nodes are not reached through it: run t2i submit --address {text} "
            f"-- {command}, or give {FORM}"
        )
    host, _, port = text.removeprefix(CLIENT).rpartition(":")
    if text != "auto" and not (host and port.isdigit() and 0 < int(port) < 65536):
        raise RequestError(f"{where} {text!r} is none: give {FORM}")
    return text


def find_token(environment: Mapping[str, str]) -> str | None:
    """The token that Ray would send: RAY_AUTH_TOKEN, else the file RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token.

    None where RAY_AUTH_MODE does not turn tokens on, and where there is none.
    """
    if environment.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"].strip()
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    with suppress(OSError, UnicodeDecodeError):
        path = Path(named) if named else Path.home() / ".ray" / "auth_token"
        return path.read_text().strip() or None
    return None


def knock(address: str, token: str | None) -> str:
    """How GCS at HOST:PORT answers: `open`, `refused` for want of this token, or why there is no answer."""
    import grpc  # type: ignore[import-untyped]
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    words = (("authorization", f"Bearer {token}"),) if token else ()
    with _channel(grpc, address) as channel:
        try:
            NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=ANSWER_S, metadata=words)
        except grpc.RpcError as error:
            return "refused" if error.code() == grpc.StatusCode.UNAUTHENTICATED else f"{error.details()}"[:200]
    return "open"


def _channel(grpc: Any, address: str) -> Any:
    # gRPC by itself would go through an HTTP proxy of the environment, which Ray does not.
    from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS

    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(address, GLOBAL_GRPC_OPTIONS)
    from ray._common.tls_utils import load_certs_from_env

    chain, key, authority = load_certs_from_env()
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, chain), GLOBAL_GRPC_OPTIONS)


def require_answer(place: str) -> None:
    """RequestError where no cluster answers at HOST:PORT or ray://HOST:PORT, or it does not take our token."""
    host, _, port = place.removeprefix(CLIENT).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
    except (OSError, UnicodeError) as error:  # the latter for a name that no machine can have
        why = getattr(error, "strerror", None) or error
        raise RequestError(
            f"no Ray cluster answers at {place} ({why}): correct --address or RAY_ADDRESS, which is {FORM}, or start "
            "the cluster"
        ) from error
    if place.startswith(CLIENT):
        return
    token = find_token(os.environ)
    answer = knock(place, token)
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if answer == "refused" and mode.lower() != "token":
        raise RequestError(
            f"the cluster at {place} wants a token, and RAY_AUTH_MODE is {repr(mode) if mode else 'not set'} here: set "
            f"RAY_AUTH_MODE=token, and {TOKEN_MEND}"
        )
    if answer == "refused":
        which = "refuses the token of this machine" if token else "wants a token, and there is none here"
        raise RequestError(f"the cluster at {place} {which}: {TOKEN_MEND}")
    if answer != "open":
        raise RequestError(f"what answers at {place} is no Ray cluster ({answer}): give {FORM}")
