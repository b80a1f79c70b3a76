"""Rules of what a profile may name: addresses to listen on, URLs without secrets, plain words."""

import re
from ipaddress import ip_address, ip_network
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

NAME = r"^[a-z]([a-z0-9-]*[a-z0-9])?$"
"""A label of RFC 1123, section 2.1, that begins with a letter: what Kubernetes takes as a name everywhere."""
PLAIN = r"^[A-Za-z0-9_./:=,@%+~-]+$"
"""Characters that every shell takes as they are. An entrypoint of a RayJob is read by two shells, one after another."""
EVERY_INTERFACE = {"0.0.0.0", "::", "*", ""}
SECRETS = ("password", "passwd", "pwd", "token", "secret", "key")


def public_bind(host: str) -> str:
    """Why listening on this address would be open to the outside; empty when it is not."""
    host = host.strip("[]")
    if host in EVERY_INTERFACE:
        return "is every interface of the machine"
    try:
        address = ip_address(host)
    except ValueError:
        return ""
    if address.is_unspecified:
        return "is every interface of the machine"
    return "is a public address" if address.is_global else ""


def without_secret(url: str) -> str:
    """The URL. Raises ValueError when it carries a password, token or key."""
    try:
        parts = urlsplit(url)
        held = parts.password
    except ValueError as error:
        raise ValueError(f"{shown(url)!r} is no URL ({error})") from error
    named = [name for name, _ in parse_qsl(parts.query) if any(word in name.lower() for word in SECRETS)]
    if held is not None or named:
        raise ValueError(
            f"{shown(url)!r} has a password in it, and every file that is rendered would too: take it out, and name "
            "the secret that holds it as `secret` beside it"
        )
    return url


def shown(url: str) -> str:
    """A URL as it may be printed: without its password and its query."""
    return re.sub(r"(?<=:)[^:@/]*(?=@)", "***", url.partition("?")[0])


def listens_on(host: str) -> str:
    """The host. Raises ValueError when listening on it would be open to the outside."""
    reason = public_bind(host)
    if reason:
        raise ValueError(
            f"{host!r} {reason}, and whoever reaches it runs what they like: write 127.0.0.1 and reach it through ssh "
            "-L or kubectl port-forward, or a private address of the machine"
        )
    return host


def private_network(text: str) -> str:
    """A network in CIDR notation. Raises ValueError for none, or one that is everything."""
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no network ({error}): write it as 203.0.113.0/24") from error
    if network.prefixlen < 8:
        raise ValueError(
            f"{text!r} is nearly every address there is: name the network you come from, as 203.0.113.7/32"
        )
    return text


def scheme_of(*schemes: str) -> Any:
    """A validator: the URL is of one of these schemes."""

    def check(url: str) -> str:
        if not any(url.startswith(f"{scheme}://") for scheme in schemes):
            raise ValueError(f"{shown(url)!r} is none of {', '.join(f'{scheme}://' for scheme in schemes)}")
        return url

    return check


def whole_path(path: str) -> str:
    """A path that means the same on every machine. Raises ValueError."""
    if not path.startswith("/") or ".." in path.split("/") or path.rstrip("/") in ("", "/tmp", "/home", "/root"):
        raise ValueError(f"{path!r} is no folder of its own: write a whole path that every machine sees, as /mnt/t2i")
    return path.rstrip("/")


Name = Annotated[str, Field(pattern=NAME, max_length=40)]
Word = Annotated[str, Field(pattern=PLAIN, min_length=1, max_length=400)]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=400)]
Bind = Annotated[str, AfterValidator(listens_on), Field(pattern=r"^[\w.:\[\]*-]*$")]
Network = Annotated[str, AfterValidator(private_network)]
FolderPath = Annotated[str, Field(pattern=PLAIN), AfterValidator(whole_path)]
Url = Annotated[str, Field(pattern=r"^[^\s'\"`$\\]+$"), AfterValidator(without_secret)]
HttpUrl = Annotated[Url, AfterValidator(scheme_of("http", "https"))]
StoreUrl = Annotated[Url, AfterValidator(scheme_of("s3", "gs", "file"))]
Port = Annotated[int, Field(ge=1024, le=65535)]
Text = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)]
