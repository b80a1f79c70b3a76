"""What every command is made of: the shared options, how it speaks, and how its result is printed."""

import json
import os
from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import click

from orchestration.errors import RequestError
from orchestration.home import Home, copy_of, find_home
from orchestration.options import shared_options

Result = dict[str, Any]


class App:
    """What every command shares: where state lives, which MLflow, and how to speak."""

    def __init__(self, home: Home, mlflow_uri: str | None, as_json: bool) -> None:
        self._home, self.mlflow_uri, self.as_json = home, mlflow_uri, as_json
        self._looked = False

    @property
    def home(self) -> Home:
        """Where state lives. Raises RequestError when nothing can be written there, or where it is a copy of."""
        folder = next(path for path in (self._home.root, *self._home.root.parents) if os.access(path, os.F_OK))
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            reason = "cannot be written to" if folder.is_dir() else "is not a folder"
            raise RequestError(
                f"home {self._home.root} cannot be used ({folder} {reason}): name another with --home or T2I_HOME"
            )
        if (copy := copy_of(self._home.root)) is not None and not self._looked:
            copy.store.require_writable()
            self._looked = True
        return self._home

    def tracker(self) -> Any:
        """The MLflow tracker of this home."""
        from orchestration.tracking import Tracker

        return Tracker(self.home.root, self.mlflow_uri)

    def progress(self) -> Any:
        """Bars when a person is watching."""
        from orchestration.progress import default_progress

        return default_progress()

    def say(self, line: str) -> None:
        """One line for a person; standard output is left to results when it is JSON."""
        click.echo(line, err=self.as_json)

    def give(self, result: Result) -> None:
        """The result as one line of JSON, if it is asked for."""
        if self.as_json:
            click.echo(json.dumps(result, sort_keys=True))


def command(group: click.Group, name: str) -> Callable[[Callable[..., Result | None]], click.Command]:
    """A command with the shared options; what it returns is printed, as JSON with --json.

    One that fails with a result worth having gives it to `App.give` before it raises.
    """

    def decorate(function: Callable[..., Result | None]) -> click.Command:
        def run(home: str | None, mlflow_uri: str | None, as_json: bool, **options: Any) -> None:
            app = App(find_home(home), mlflow_uri, as_json)
            result = function(app, **options)
            if result is not None:
                app.give(result)

        update_wrapper(run, function)
        made = group.command(name, context_settings={"max_content_width": 110})(run)
        made.params += shared_options()
        return made

    return decorate
