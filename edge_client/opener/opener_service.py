"""Runs an opener on a real broker: wires keys, pin, book, link and session; decides nothing.

It has what a device has (a state directory with identity and sealing key, a place in the coordinator's roster, a login at
the broker) and trains nothing.
"""

import contextlib
import dataclasses
import logging
import os
import queue
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from broker_link.link import LinkDown, LinkEvent, LinkUp
from edge_client.channel import DeviceChannel
from edge_client.config import EdgeConfig
from edge_client.coordinator_voice import voice_of
from edge_client.device_link import MakeLink, client_version, paho_link
from edge_client.errors import IdentityError
from edge_client.events import Publish, Tick
from edge_client.identity import IdentityStore
from edge_client.opener.opener_session import AnswerOrder, OpenerSession
from edge_client.pinned_directory import PinnedDirectory
from edge_client.sealing_key import SealingKeyStore
from edge_client.settings import AgentSettings
from edge_client.state_dir import StateDir
from edge_client.state_writer import StateWriter
from secure_sum.key_directory import KeyDirectory

__all__ = ["OpenerKeys", "OpenerService"]

_LOG = logging.getLogger(__name__)
_LONGEST_SLEEP_S: Final = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenerKeys:
    """What an opener's answers rest on."""

    population: str
    opener_id: str
    home: Path
    """Its state directory."""
    sealing_key: X25519PrivateKey = dataclasses.field(repr=False)
    accept_directory: Callable[[bytes], KeyDirectory]
    """Checks a key directory against the pin, and pins it."""


class OpenerService:
    """One opener. ``serve`` runs it in the calling thread; ``stop`` may be called from anywhere.

    Args:
        config: Broker, population, id, state directory, and the authority that the owner trusts; nothing else is used.
        make_answer: Makes what answers orders.
        make_link: Makes its link.
        settings: Its patience with transfers.

    Raises:
        StorageError: The state directory cannot be used, or another process uses it.
        IdentityError: It has no keys, or they cannot be used.
        ConfigError: The password file cannot be read.
    """

    def __init__(
        self,
        config: EdgeConfig,
        *,
        make_answer: Callable[[OpenerKeys], AnswerOrder],
        make_link: MakeLink = paho_link,
        settings: AgentSettings | None = None,
    ) -> None:
        # No SimpleQueue: a signal's handler that returns after the time-out makes CPython's wait for ever.
        self._events: queue.Queue[LinkEvent | None] = queue.Queue()
        self._is_stopping = False
        home = Path(config.device.state_dir)
        self._state_dir = StateDir(home)
        self._state_dir.lock()
        writer = StateWriter()
        identity = IdentityStore.of_this_process(home, writer=writer).load()
        sealing_key = SealingKeyStore(home, writer=writer).load()
        if identity is None or sealing_key is None:
            self._state_dir.unlock()
            raise IdentityError(f"there are no keys in {home}: make them with 'request', and have them entered")
        population = config.device.population
        self._channel = DeviceChannel(
            population=population,
            device_id=self._state_dir.device_id(config.device.id, writer=writer),
            client_version=client_version(),
        )
        self._channel.seal = identity.seal
        pinned = PinnedDirectory(
            home, writer=writer, population=population, authority_fingerprint=config.privacy.authority
        )
        keys = OpenerKeys(
            population=population,
            opener_id=self._channel.device_id,
            home=home,
            sealing_key=sealing_key,
            accept_directory=pinned.accept,
        )
        self.session = OpenerSession(
            self._channel, answer=make_answer(keys), settings=settings, uniform=random.SystemRandom().uniform
        )
        voice = voice_of(config, self._channel, position_path=self._state_dir.task_position)
        self._link = make_link(config, self._channel, voice.sink(self._events.put))

    @property
    def opener_id(self) -> str:
        """Its name in the population."""
        return self._channel.device_id

    def stop(self) -> None:
        """Makes ``serve`` return. Safe in a signal handler and from any thread."""
        self._is_stopping = True
        self._events.put(None)

    def serve(self) -> None:
        """Answers until stopped. Call it once."""
        _LOG.info("opener_started opener=%s pid=%d", self.opener_id, os.getpid())
        self._link.start()
        try:
            while not self._is_stopping:
                self._step()
        finally:
            self._send(self._channel.status(is_online=False))
            self._link.stop()
            self._state_dir.unlock()
            _LOG.info("opener_stopped opener=%s", self.opener_id)

    def _step(self) -> None:
        wait_s = min(max(self.session.next_wakeup() - time.monotonic(), 0.0), _LONGEST_SLEEP_S)
        event: LinkEvent | Tick | None = Tick()
        with contextlib.suppress(queue.Empty):
            event = self._events.get(timeout=wait_s)
        if event is None:
            return
        if isinstance(event, LinkUp):
            _LOG.info("opener_connected opener=%s", self.opener_id)
            self._send(self._channel.status(is_online=True))
        elif isinstance(event, LinkDown):
            _LOG.warning("opener_disconnected opener=%s", self.opener_id)
        for publish in self.session.handle(event, time.monotonic()):
            self._send(publish)

    def _send(self, publish: Publish) -> None:
        self._link.publish(publish.topic, self._channel.seal(publish.topic, publish.payload), retain=publish.retain)
