"""Joining a cluster to look at it; every way that fails is a sentence of its own."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestration.cluster import QUIET_ENVIRONMENT
from orchestration.clusters.knocking import FORM, require_answer
from orchestration.errors import RequestError


@contextmanager
def joined(address: str) -> Iterator[tuple[Any, Any]]:
    """`ray`, connected to a cluster, and what `ray.init` told of it; disconnected at the end.

    Raises RequestError where there is no cluster, and for a missing or wrong token.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray.exceptions import AuthenticationError

    try:
        place = canonicalize_bootstrap_address_or_die(address) if address == "auto" else address
    except (ConnectionError, ValueError) as error:
        raise RequestError(
            f"no Ray cluster runs on this machine, and the address is auto: start one, or give {FORM}"
        ) from error
    require_answer(place)
    try:
        context = ray.init(address=place, log_to_driver=False, logging_level=logging.ERROR)
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())[:300].rstrip(".")
        raise RequestError(
            f"the cluster at {place} cannot be joined from here ({told}): run this on one of its machines, or as a job "
            "of it with t2i submit"
        ) from error
    try:
        yield ray, context
    finally:
        ray.shutdown()
