"""Runs the release station on a real broker. Decides nothing."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from broker_link.link import LinkEvent
from broker_link.paho_link import PahoLink
from broker_link.tls import ClientCertificate
from coordinator.releases.report_guard import AnyReports, SignedReports
from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.rollout_book import RolloutBook
from coordinator.releases.rollouts import Rollouts
from coordinator.releases.signing_keys import KeyFiles
from coordinator.releases.station import ReleaseStation, ReportGuard
from wire_protocol.identifiers import checked_identifier

__all__ = ["BOOK_FILE", "KEYS_DIRECTORY", "open_channel", "run_station"]

BOOK_FILE: Final = "rollouts.sqlite"
KEYS_DIRECTORY: Final = "keys"
_MAX_WAIT_S: Final = 1.0


def open_channel(directory: Path, keys: KeyFiles | None = None) -> tuple[ReleaseRepository, RolloutBook, Rollouts]:
    """Opens a channel's repository and its book.

    Raises:
        ReleaseError: There is none, or it cannot be used.
    """
    repository = ReleaseRepository(directory, keys or KeyFiles(directory / KEYS_DIRECTORY), now=time.time)
    book = RolloutBook(directory / BOOK_FILE)
    return repository, book, Rollouts(repository, book, now=time.time)


def run_station(
    *,
    directory: Path,
    population: str,
    broker_url: str,
    ca_file: str | None = None,
    certificate: ClientCertificate | None = None,
    roster_file: Path | None = None,
    stop: threading.Event,
    step_s: float = 5.0,
    until: Callable[[ReleaseStation], bool] = lambda _: False,
) -> ReleaseStation:
    """Serves until ``stop`` is set or ``until`` says so.

    Args:
        directory: The channel's.
        population: Whose devices it is for.
        broker_url: The broker's address.
        ca_file: PEM file of the CA to trust.
        certificate: Ours, for a broker that asks for one.
        roster_file: The devices that are believed; None believes everybody.
        stop: Set from anywhere.
        step_s: Between two looks at the gates and at what is on disk.
        until: Asked after every turn.

    Returns:
        The station, with its counts.

    Raises:
        ReleaseError: The channel cannot be used.
        RosterUnusable: The roster cannot be used.
        InvalidBrokerUrl: The address cannot be understood.
    """
    checked_identifier(population, kind="population")
    repository, book, rollouts = open_channel(directory)
    guard: ReportGuard = AnyReports()
    if roster_file is not None:
        guard = SignedReports(roster_file, population=population)
    station = ReleaseStation(
        population=population,
        repository=repository,
        rollouts=rollouts,
        book=book,
        guard=guard,
        now=time.time,
        step_s=step_s,
    )
    events: queue.Queue[LinkEvent] = queue.Queue()
    link = PahoLink(
        url=broker_url,
        client_id=f"releases-{population}",
        subscriptions=station.subscriptions,
        sink=events.put,
        ca_file=ca_file,
        certificate=certificate,
    )
    link.start()
    try:
        while not stop.is_set():
            wait_s = min(_MAX_WAIT_S, max(0.0, station.next_wakeup() - time.monotonic()))
            with contextlib.suppress(queue.Empty):
                station.handle(events.get(timeout=wait_s) if wait_s else events.get_nowait(), time.monotonic())
                while True:
                    station.handle(events.get_nowait(), time.monotonic())
            station.turn(link, time.monotonic())
            if until(station):
                break
    finally:
        link.stop()
        book.close()
    return station
