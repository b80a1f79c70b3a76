"""Following a job to its end: each of its lines once, whatever happens to the connection."""

import time
from collections.abc import Callable

from orchestration.clusters.jobs import PENDING, JobServer, JobState, LostConnection, UnknownJob
from orchestration.errors import RequestError, RunError

Say = Callable[[str], None]
QUIET_S = 20.0
"""A stream that brings nothing for so long is opened anew: it may be cut without either side knowing."""
SLOW_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


class LogReader:
    """Turns texts that each begin at the log's first character into its lines, each once."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._seen = self._position = 0
        self._unfinished = ""
        self.last = ""

    def rewind(self) -> None:
        """What is read next is the log from its beginning."""
        self._position = 0

    def read(self, text: str) -> None:
        """The next piece of what is being read."""
        fresh = text[max(0, self._seen - self._position) :]
        self._position += len(text)
        self._seen = max(self._seen, self._position)
        *lines, self._unfinished = (self._unfinished + fresh).split("\n")
        for line in lines:
            self._tell(line)

    def end(self) -> None:
        """The log is complete: its last line may lack an end."""
        if self._unfinished:
            self._tell(self._unfinished)
        self._unfinished = ""

    def _tell(self, line: str) -> None:
        # A bar that is drawn over itself leaves what it showed last.
        shown = line.rstrip("\r").rpartition("\r")[2]
        if shown.strip():
            self.last = shown.strip()
        self._say(shown)


class Follower:
    """Follows one job. say: is given its lines; note: remarks about the connection.

    again: how a person comes back to the job. patience_s: how long the cluster may be out of reach.
    """

    def __init__(
        self,
        server: JobServer,
        name: str,
        say: Say,
        note: Say,
        again: str,
        patience_s: float = 600.0,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.server, self.name, self.note, self.again, self.patience_s = server, name, note, again, patience_s
        self.log = LogReader(say)
        self._wait = wait
        self._lost_at: float | None = None
        self._waiting_since: float | None = None

    def follow(self) -> JobState:
        """Until it ended. Raises RunError when it is deleted or out of reach before."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                state = self._look()
                pause = FIRST_PAUSE_S
                if state.over:
                    self._catch_up()
                    self.log.end()
                    return state
                if state.status == PENDING:
                    self._tell_of_waiting(state)
                else:
                    self.log.rewind()
                    self.server.tail(self.name, QUIET_S, self.log.read)
                    # Where streams do not pass, the whole log does.
                    self._look()
                    self._catch_up()
            except LostConnection as error:
                self._lost(error)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            self._wait(pause)

    def _look(self) -> JobState:
        try:
            state = self.server.job(self.name)
        except UnknownJob as error:
            raise RunError(
                f"{self.server.address} no longer knows the job {self.name}: it was deleted, or the head was started "
                "anew, which ends its jobs; submit it again, what it finished is not done twice"
            ) from error
        except RequestError as error:
            raise RequestError(f"{error}; the job {self.name} goes on: {self.again}") from error
        if self._lost_at is not None:
            self.note(f"connected to {self.server.address} again")
            self._lost_at = None
        return state

    def _catch_up(self) -> None:
        text = self.server.log(self.name)
        self.log.rewind()
        self.log.read(text)

    def _lost(self, error: LostConnection) -> None:
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
            self.note(f"lost the connection to {self.server.address} ({error}); trying again")
        if now - self._lost_at >= self.patience_s:
            raise RunError(
                f"{self.server.address} has been out of reach for {self.patience_s:.0f} s ({error}); a job goes on "
                f"as long as its head does: {self.again}"
            ) from error

    def _tell_of_waiting(self, state: JobState) -> None:
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        elif 0 <= now - self._waiting_since >= SLOW_S:
            self.note(f"{self.name} waits to begin: {state.message}")
            self._waiting_since = float("inf")
