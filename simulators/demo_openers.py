"""Who opens the sums of a confidential demo: helpers, a key authority, or a committee of its own devices."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from coordinator.confidential_task import encrypted_sums, made_confidential, masked_sums, who_must_be_believed
from coordinator.task_bundle import TaskBundle
from secure_sum.directory_entries import MemberRole
from simulators.demo_helpers import HELPER_IDS, HelperProcesses, demo_helper_sums
from simulators.demo_key_authority import KEY_AUTHORITY_ID, issue_demo_keys
from simulators.demo_report import DemoConfig
from simulators.offline_directory import OfflineDirectory, enter_offline
from simulators.process_fleet import device_state_dir
from wire_protocol.confidentiality import Confidentiality

__all__ = ["DemoOpeners"]

_COMMITTEE: Final = 7
"""Members of a committee, if there are as many devices: any five of them open."""


class DemoOpeners:
    """The openers of one demo; of one that is not confidential there are none.

    Args:
        config: What to show.
        device_ids: The demo's devices.
        root: Where everybody's state directories are.
        population: Everybody's.
    """

    def __init__(self, config: DemoConfig, device_ids: Sequence[str], root: Path, *, population: str) -> None:
        self._config = config
        self._root = root
        self._population = population
        self._entered: OfflineDirectory | None = None
        self._keys: bytes | None = None
        roles = dict.fromkeys(device_ids, MemberRole.DEVICE)
        if config.confidentiality == "helpers":
            roles |= dict.fromkeys(HELPER_IDS, MemberRole.HELPER)
        if config.confidentiality == "he":
            roles[KEY_AUTHORITY_ID] = MemberRole.KEY_AUTHORITY
        self._committee = tuple(device_ids[:_COMMITTEE]) if config.confidentiality == "masks" else ()
        self.homes = {name: (device_state_dir(root, name), role) for name, role in roles.items()}
        """State directories and roles of everybody who is enrolled: nobody else is heard."""

    @property
    def directory(self) -> bytes | None:
        """The key directory; None if nobody opens anything."""
        return None if self._entered is None else self._entered.data

    @property
    def encryption_keys(self) -> bytes | None:
        """What the key authority has released; None if there is none."""
        return self._keys

    def enter(self) -> None:
        """Makes everybody's keys and the key directory; after enrolment, before anybody runs."""
        if self._config.confidentiality == "none":
            return
        self._entered = enter_offline(self.homes, population=self._population)
        if self._config.confidentiality == "he":
            self._keys = issue_demo_keys(device_state_dir(self._root, KEY_AUTHORITY_ID), self._entered, self._root)

    def owners_rules(self, device_id: str) -> str:
        """What a device's owner says about it: the rest of its ``[privacy]`` section, and further ones."""
        if self._entered is None:
            return ""
        rules = f'confidentiality = ["{self._config.confidentiality}"]\nauthority = "{self._entered.authority}"\n'
        return rules + ("[committee]\nserve = true\n" if device_id in self._committee else "")

    def processes(self, broker_url: str, *, min_contributors: int) -> contextlib.AbstractContextManager[object]:
        """Those openers that are no devices, each a process."""
        if self._entered is None or self._committee:
            return contextlib.nullcontext()
        is_encrypted = self._config.confidentiality == "he"
        names = (KEY_AUTHORITY_ID,) if is_encrypted else HELPER_IDS
        return HelperProcesses(
            {name: device_state_dir(self._root, name) for name in names},
            broker_url=broker_url,
            population=self._population,
            min_contributors=max(2, min_contributors),
            authority=self._entered.authority,
            log_dir=self._root / "logs",
            kind="key-authority" if is_encrypted else "helper",
        )

    def confidential(self, bundle: TaskBundle) -> TaskBundle:
        """The task with these openers in its plan."""
        return bundle if self._entered is None else made_confidential(bundle, self._way(self._entered.data))

    def _way(self, directory: bytes) -> Confidentiality:
        if self._committee:
            return masked_sums(directory, self._committee)
        if self._keys is not None:
            return encrypted_sums(directory, KEY_AUTHORITY_ID, self._keys)
        return demo_helper_sums(directory)

    @staticmethod
    def who_must_be_believed(bundle: TaskBundle) -> str:
        """That only sums are seen: on whom this rests; empty if nobody says so."""
        way = bundle.plan.confidentiality
        return "" if way is msgspec.UNSET else who_must_be_believed(way)[1]
