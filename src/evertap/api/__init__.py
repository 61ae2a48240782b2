"""The local API: varlink on a Unix socket; its interface, server, peers' rights and client."""

SOCKET = "evertap.sock"
"""The socket's name in the runtime folder."""

HISTORY_PAGE = 500
"""Events of a NIC's history in one answer, at most."""
