"""Ray's own validators: of files for `ray up`, of groups as its autoscaler reads them, of Serve's configuration."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from orchestration.clusters.findings import mapping
from orchestration.config import first_problem

LONGEST = 300


def launcher_problem(document: dict[str, Any]) -> str:
    """Why `ray up` would refuse a file before it asks the cloud; empty when it would not."""
    with _quiet():
        from ray.autoscaler._private.util import prepare_config, validate_config

        return _problem(lambda: validate_config(prepare_config(copy.deepcopy(document))))


def groups_problem(document: dict[str, Any], spec: dict[str, Any]) -> str:
    """Why Ray's autoscaler in Kubernetes could not read the groups of a cluster; empty when it can."""
    with _quiet():
        from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

        metadata = {"namespace": "default", **mapping(document.get("metadata"))}
        return _problem(lambda: _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": spec}))


def serve_problem(document: Any) -> str:
    """Why Serve would refuse a configuration, or the endpoint its settings; empty when neither would."""
    from orchestration.serving.settings import ServeSettings

    with _quiet():
        from ray.serve.schema import ServeDeploySchema

        try:
            ServeDeploySchema.model_validate(document)
            for application in document["applications"]:
                ServeSettings.model_validate(application["args"])
        except ValidationError as error:
            return first_problem(error)
        except (KeyError, TypeError, ValueError) as error:
            return _sentence(error)
    return ""


def _problem(ask: Any) -> str:
    try:
        ask()
    except Exception as error:  # each validator has its own kinds, jsonschema's and bare assertions among them
        return _sentence(error)
    return ""


def _sentence(error: Exception) -> str:
    said = " ".join(str(getattr(error, "message", None) or error).split()) or type(error).__name__
    said = f"no {said} in it" if isinstance(error, KeyError) else said
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray's loggers say nothing below an error in here."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.autoscaler._private.util")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
