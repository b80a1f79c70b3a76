"""Where a cluster's Jobs API is, and the token that opens it."""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from orchestration.errors import RequestError

LOCAL = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
TOKEN_VARIABLE, TOKEN_PATH_VARIABLE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
TOKEN_FILE = ".ray/auth_token"
OTHERS = stat.S_IRWXG | stat.S_IRWXO
HOW_TO_GIVE_A_TOKEN = f"set {TOKEN_VARIABLE}, or {TOKEN_PATH_VARIABLE} to a file with it, or write it to ~/{TOKEN_FILE}"


@dataclass(frozen=True, slots=True)
class Access:
    """address: http(s)://HOST:PORT without a path's last slash. token: None where there is none."""

    address: str
    token: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Of a request: the token, whatever RAY_AUTH_MODE says here (Ray's own client sends it with `token` only)."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def __repr__(self) -> str:
        return f"Access({self.address!r}, token={'***' if self.token else None})"


def find_access(address: str | None = None) -> Access:
    """The cluster of --address, else of RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else of this machine; with its token.

    Raises RequestError for an address that is none of a Jobs API, and as `read_token` does.
    """
    for variable in ADDRESS_VARIABLES:
        found = os.environ.get(variable, "")
        # RAY_ADDRESS may name a cluster's inner port, for those who join it.
        if address is None and (
            found.startswith(("http://", "https://")) or (found and variable == ADDRESS_VARIABLES[0])
        ):
            return Access(_checked(found, variable), read_token())
    return Access(_checked(LOCAL if address is None else address, "--address"), read_token())


def _checked(text: str, where: str) -> str:
    mend = "write it as http://HOST:8265, the head's dashboard"
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port is not None
    except ValueError:
        known = False
    if not known:
        raise RequestError(f"{where} {text!r} is no address of a Jobs API: {mend}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise RequestError(f"{where} has more than an address in it: {mend}, and {HOW_TO_GIVE_A_TOKEN}")
    return text.rstrip("/")


def read_token() -> str | None:
    """The token, from where Ray's own client has it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token; or None.

    Raises RequestError for a file that is absent although named, that others may read, or that holds no token.
    """
    if (text := os.environ.get(TOKEN_VARIABLE, "").strip()) != "":
        return _token(text, TOKEN_VARIABLE)
    named = os.environ.get(TOKEN_PATH_VARIABLE, "").strip()
    try:
        path = Path(named).expanduser() if named else Path.home() / TOKEN_FILE
    except RuntimeError as error:  # a user that the machine does not know
        if not named:
            return None
        raise RequestError(f"{TOKEN_PATH_VARIABLE} names {named}, whose ~ is no user here: write it out") from error
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        if not named:
            return None
        raise RequestError(f"{TOKEN_PATH_VARIABLE} names {path}, which is not there: {HOW_TO_GIVE_A_TOKEN}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"the token file {path} cannot be read ({error}): {HOW_TO_GIVE_A_TOKEN}") from error
    if mode & OTHERS:
        raise RequestError(
            f"the token file {path} is open to other users (mode {stat.S_IMODE(mode):04o}): chmod 600 {path}"
        )
    return _token(text, f"the token file {path}")


def _token(text: str, where: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        said = "is empty" if not text else "holds more than one word"
        raise RequestError(f"{where} {said}: it must be the cluster's token and nothing else")
    return text
