"""Errors of the broker link.

LinkError
├── InvalidBrokerUrl   the broker's address cannot be understood; says what is allowed
├── PlaintextRefused   no TLS to another machine, and nobody has allowed that
├── LinkUnavailable    the first connection could not be made in the time allowed (transient: try again)
└── ProbeFailed        a question to the broker got no answer; says why
"""

__all__ = ["InvalidBrokerUrl", "LinkError", "LinkUnavailable", "PlaintextRefused", "ProbeFailed"]


class LinkError(Exception):
    """Base of the errors of this package."""


class InvalidBrokerUrl(LinkError):
    """The broker's address cannot be understood."""


class PlaintextRefused(LinkError):
    """A connection without TLS to another machine that nobody has allowed."""


class LinkUnavailable(LinkError):
    """No connection to the broker within the time allowed."""


class ProbeFailed(LinkError):
    """A question to the broker got no answer.

    Args:
        text: Why.
        is_login_refused: Whether the broker answered, and does not want this login.
    """

    def __init__(self, text: str, *, is_login_refused: bool = False) -> None:
        super().__init__(text)
        self.is_login_refused = is_login_refused
