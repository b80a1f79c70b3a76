"""The two ways a command ends badly; everything a person reads passes through one of them.

The message is one sentence that says what was wrong, where, and how to mend it.
"""


class RequestError(Exception):
    """The request itself is wrong: bad option, bad path, bad data. The command exits with code 2."""


class RunError(Exception):
    """A valid request failed while running; the message says how to go on. The command exits with code 1."""
