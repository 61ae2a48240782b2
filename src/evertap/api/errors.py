"""What can go wrong between a client and the daemon, besides the errors of the model."""

from __future__ import annotations

from evertap.model.errors import EvertapError


class NotReachableError(EvertapError):
    """There is no daemon at the socket, or it went away, or it does not answer."""


class PermissionDeniedError(EvertapError):
    """The caller may only read."""
