"""What a device has to say about its releases: each change once, and the last one again after a connection."""

from wire_protocol.release_report import MAX_DETAIL_CHARS, ReleaseCheck, ReleaseFailure, ReleaseReport, ReleaseState

__all__ = ["ReleaseNews"]


class ReleaseNews:
    """The last report about one model, and whether it is still to be sent.

    Args:
        name: The model's.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._last: ReleaseReport | None = None
        self._is_new = False

    @property
    def last_check(self) -> ReleaseCheck | None:
        """What was measured last."""
        return None if self._last is None else self._last.check

    def say(
        self,
        state: ReleaseState,
        number: int,
        *,
        serial: int,
        current: int,
        failure: ReleaseFailure | None = None,
        detail: str = "",
        check: ReleaseCheck | None = None,
    ) -> None:
        """Notes how things are; what was said already is not said again."""
        report = ReleaseReport(
            name=self._name,
            serial=serial,
            number=number,
            state=state,
            current=current,
            failure=failure,
            detail=detail[:MAX_DETAIL_CHARS],
            check=check,
        )
        if report != self._last:
            self._last, self._is_new = report, True

    def repeat(self) -> None:
        """Says the last one again: it may have been lost."""
        self._is_new = self._last is not None

    def pop(self) -> ReleaseReport | None:
        """What is to be sent now; once."""
        if not self._is_new:
            return None
        self._is_new = False
        return self._last
