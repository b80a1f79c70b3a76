"""What Ray leaves on a cluster when a campaign ends, or the process that trains a group dies, found and given back.

A group of Ray Train holds its cores by a placement group, which lives as long as the driver's job. Ray Train has an
actor beside each group to free them; it fails where two clusters share a machine (it then knows no address), cannot
know a group that was still starting, and never ends itself once the group's controller is dead (ray issue 65443). So
it is done here. And every process of Ray Tune makes a folder for each trial in its node's temporary folder, where it
stays as long as the cluster lives.
"""

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestration.cluster import head_answers

CONTROLLER, WATCHER = "TrainController", "PlacementGroupCleaner"
OF_THE_CLUSTER = frozenset({"_AutoscalingCoordinatorActor"})
"""Ray's own actors of which a cluster has one: it belongs to the job that needed it first, and outlives it."""
EVERY_S, EMPTY_S, GONE_S = 5.0, 15.0, 20.0
"""Seconds between two looks; how long a group may hold cores without a process, since one that starts does for a
moment; and how long to wait at the end for controllers that are ending."""
MOST = 10_000  # rows of one answer

log = logging.getLogger(__name__)


class Leftovers:
    """Of one driver's job. mark: the resource by which Tune's own placement groups are told from those of groups."""

    def __init__(self, ray: Any, mark: str) -> None:
        self._ray, self._mark = ray, mark
        context = ray.get_runtime_context()
        self.job, self._node, self._address = context.get_job_id(), context.get_node_id(), context.gcs_address
        self._empty_since: dict[str, float] = {}
        self._next_look = float("inf")
        self._others = self._asked(self._groups, [])

    def suspect(self, alone: bool) -> None:
        """The process of a group died. alone: no other group trains, so that whatever holds cores is left of it."""
        if alone:
            self._asked(self._free_all, None)
        self._next_look = min(self._next_look, time.monotonic())

    def look(self) -> None:
        """Free what dead groups hold, now and then after a process died; to be called often."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + EVERY_S
            self._asked(self._free_empty, None)

    def clear(self) -> None:
        """At the end, when nothing of the job trains: free all that is left of it."""
        until = time.monotonic() + GONE_S
        while self._asked(lambda: self._actors(CONTROLLER), []) and time.monotonic() < until:
            time.sleep(GONE_S / 50)
        self._asked(self._free_all, None)
        self.end_watchers(self.job)

    def end_watchers(self, job: str) -> None:
        """End Ray's actors beside groups of a job whose controllers are all dead."""
        watchers = self._asked(lambda: self._actors(WATCHER, job), [])
        if watchers and not self._asked(lambda: self._actors(CONTROLLER, job), []):
            for watcher in watchers:
                with suppress(self._ray.exceptions.RayError):
                    _end_process(self._ray, watcher.node_id, watcher.pid)

    def remove_folders(self, runs: Sequence[str]) -> None:
        """Remove what Ray keeps of these runs of Tune on every node that trains, and here."""
        if runs:
            _remove_folders(runs)
            self._asked(lambda: self._on_other_nodes(_remove_folders, runs), None)

    def _on_other_nodes(self, act: Callable[[Any], None], told: Any) -> None:
        others = [
            node["NodeID"]
            for node in self._ray.nodes()
            if node["Alive"] and node["NodeID"] != self._node and node["Resources"].get(self._mark)
        ]
        begun = [_begin(self._ray, node, act, told) for node in others]
        if begun:
            # A node that has just gone is not waited for.
            self._ray.wait(begun, num_returns=len(begun), timeout=GONE_S)

    def _free_all(self) -> None:
        for group in self._groups():
            if group not in self._others:
                self._free(group)

    def _free_empty(self) -> None:
        inhabited = {actor.placement_group_id for actor in self._actors()}
        now = time.monotonic()
        empty = [group for group in self._groups("CREATED") if group not in self._others and group not in inhabited]
        self._empty_since = {group: self._empty_since.get(group, now) for group in empty}
        for group, since in self._empty_since.items():
            if now - since >= EMPTY_S:
                self._free(group)

    def _free(self, group: str) -> None:
        from ray._raylet import PlacementGroupID
        from ray.util.placement_group import PlacementGroup, remove_placement_group

        log.info("placement group %s of a group that died is removed", group)
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))

    def _actors(self, kind: str | None = None, job: str | None = None) -> list[Any]:
        from ray.util.state import list_actors

        filters = [("job_id", "=", job or self.job), ("state", "!=", "DEAD")]
        filters += [("class_name", "=", kind)] if kind else []
        return list(list_actors(address=self._address, filters=filters, detail=True, limit=MOST))

    def _groups(self, state: str | None = None) -> list[str]:
        """Placement groups of the job that hold cores, and are not Tune's."""
        from ray.util.state import list_placement_groups

        filters = [("creator_job_id", "=", self.job), ("state", "=", state) if state else ("state", "!=", "REMOVED")]
        found = list_placement_groups(address=self._address, filters=filters, detail=True, limit=MOST)
        return [
            str(group.placement_group_id)
            for group in found
            if not any(self._mark in bundle["unit_resources"] for bundle in group.bundles or ())
        ]

    def _asked(self, ask: Callable[[], Any], otherwise: Any) -> Any:
        """A cluster without its dashboard or head cannot be asked, and one that is busy answers another time."""
        try:
            return ask() if head_answers(self._ray) else otherwise
        except Exception as error:
            log.info("what is left of job %s on the cluster is not known: %s", self.job, error)
            return otherwise


def _end_process(ray: Any, node: str, pid: int) -> None:
    ray.get(_begin(ray, node, _end, pid))


def _begin(ray: Any, node: str, act: Callable[[Any], None], told: Any) -> Any:
    """A task on this node alone, which takes none of its cores."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return ray.remote(act).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(told)


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _remove_folders(runs: Sequence[str]) -> None:
    from ray._private.worker import _global_node

    if _global_node is None:
        return
    for run in runs:
        for folder in Path(_global_node.get_session_dir_path(), "artifacts").glob(f"*/{run}"):
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()
