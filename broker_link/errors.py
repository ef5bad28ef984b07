"""Errors of the broker link.

LinkError
├── InvalidBrokerUrl   the broker's address cannot be understood; says what is allowed
├── PlaintextRefused   no TLS to another machine, and nobody has allowed that
└── LinkUnavailable    the first connection could not be made in the time allowed (transient: try again)
"""

__all__ = ["InvalidBrokerUrl", "LinkError", "LinkUnavailable", "PlaintextRefused"]


class LinkError(Exception):
    """Base of the errors of this package."""


class InvalidBrokerUrl(LinkError):
    """The broker's address cannot be understood."""


class PlaintextRefused(LinkError):
    """A connection without TLS to another machine that nobody has allowed."""


class LinkUnavailable(LinkError):
    """No connection to the broker within the time allowed."""
