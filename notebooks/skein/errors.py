"""Errors: whose fault it is decides the class, the message names the fix."""

from __future__ import annotations


class SkeinError(Exception):
    """What all errors of this package have in common. Raised itself only for mistakes of the server."""


class InvalidRequest(SkeinError, ValueError):
    """The query, an id, a time or an address is wrong; asking again will not help."""


class NotFound(SkeinError, LookupError):
    """What was asked for is not there."""


class Denied(SkeinError, PermissionError):
    """No or a wrong tenant, or wrong credentials."""


class Exhausted(SkeinError):
    """A limit of the tenant or of the server was reached; the message says which."""


class Unavailable(SkeinError, ConnectionError):
    """The server is away, busy, or ended an answer early; asking again may help."""


_BY_STATUS: dict[int, type[SkeinError]] = {
    400: InvalidRequest,
    401: Denied,
    403: Denied,
    404: NotFound,
    413: Exhausted,
    422: InvalidRequest,
    429: Exhausted,
    503: Unavailable,
    504: Unavailable,
}

#: What is wrong where a server answers 404 to a statement as such.
NO_SQL = "the server has no {what}: is this the address of a Skein, and is it recent enough?"


def of_status(status: int, text: str) -> SkeinError:
    """The error for an HTTP status with the server's text."""
    text = text.strip() or f"the server answered {status} without a word"
    if _BY_STATUS.get(status) is Denied:
        text = f"{text} (connect(…, tenant=…) names a tenant, token=… sends a bearer token)"
    return _BY_STATUS.get(status, SkeinError)(text)
