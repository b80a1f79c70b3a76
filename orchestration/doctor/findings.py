"""What is wrong, from what was seen: every check is a function of facts alone."""

from orchestration.doctor.access_checks import check_ports, check_token_files, check_tokens
from orchestration.doctor.facts import Facts
from orchestration.doctor.finding import SEVERITIES, Check, Finding
from orchestration.doctor.node_checks import (
    check_answers,
    check_clocks,
    check_gpus,
    check_machines,
    check_rings,
    check_versions,
    check_weights,
)
from orchestration.doctor.storage_checks import check_home, check_mlflow, check_optuna, check_stages

CHECKS: tuple[Check, ...] = (
    check_answers,
    check_tokens,
    check_token_files,
    check_ports,
    check_versions,
    check_rings,
    check_home,
    check_stages,
    check_mlflow,
    check_optuna,
    check_gpus,
    check_weights,
    check_clocks,
    check_machines,
)


def find(facts: Facts) -> list[Finding]:
    """Every finding, the gravest first."""
    found = [finding for check in CHECKS for finding in check(facts)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))
