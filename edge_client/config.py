"""The device's configuration: a TOML file, and environment variables over it.

    [device]
    id = "kitchen-pi"                 # made up once and kept in state_dir if left out
    population = "digits"             # required
    state_dir = "/var/lib/flockwise"
    blob_cache_mb = 512
    log_level = "info"
    max_write_mb_per_hour = 200       # beyond this, models are kept in memory only; reports are always stored
    safe_mode_h = 6.0                 # how long a device that failed again and again stays away from rounds; 0 is never
    [broker]
    url = "mqtts://broker.example"    # required; mqtt://127.0.0.1:1883 without TLS
    ca_file = "ca.pem"                # the system's CAs if left out
    cert_file = "device.crt"          # for brokers that ask for a client certificate
    key_file = "device.key"           # the service's credential device.key if left out
    allow_plaintext = false           # true: mqtt:// to another machine, readable by whoever is in between
    username = "kitchen-pi"
    password_file = "password"        # the service's credential broker-password if left out
    coordinator_key = ""              # the coordinator's public key (coordinator.pub): hear only what it has signed
    [data]
    path = "data"                     # required: a directory of examples or a CSV file
    [training]
    trainer = "litert"                # or "linear": softmax regression without a model file
    num_threads = 1
    time_limit_s = 3600
    memory_limit_mb = 0               # limit of the trainer's address space; 0 is none, otherwise at least 256
    idle_stop_s = 60                  # the trainer's process ends after this long without a job
    [eligibility]                     # when the device may train; a number or "refuse" is a demand: unknown is a no.
    enforce = true                    # "auto" is heeded where there is a reading, "none" not at all; false drops all
    power = "auto"                    # what it runs on, if you know better than the system: "mains" or "battery"
    network = "auto"                  # the same for the network: "metered" or "unmetered"
    require_mains = false
    min_battery_percent = "none"      # fulfilled on mains
    max_temperature_c = "auto"        # 80; cool again when temperature_margin_c below
    temperature_margin_c = 5
    hard_temperature_c = 90           # a running job is killed above this, whatever else is set
    throttling = "auto"               # "refuse" or "ignore" that the machine slows itself down (Raspberry Pi)
    max_load_per_core = "none"        # load of the last minute without our own
    min_free_memory_mb = "auto"       # 200
    max_memory_pressure_percent = "auto"  # 25: share of the last 10 s in which somebody waited for memory
    metered_network = "auto"          # "refuse" or "allow"; a finished report waits for another network too
    hours = []                        # any time; or ["22:00-06:00", "sat,sun 00:00-24:00"]: days when it begins
    time_zone = ""                    # of the hours: the system's if left out, or such as "Europe/Berlin"
    min_free_disk_mb = "auto"         # 50
    [privacy]
    epsilon = 8.0                     # what this device may spend in its life; can later only be lowered
    delta = 1e-5
    required = false                  # whether tasks without differential privacy are refused
    min_contributors = 10             # smallest cohort in whose sum this device hides
    min_noise_multiplier = 0.3
    modes = ["distributed", "local"]  # "central" trusts the coordinator with unnoised updates
    max_clipping_norm = "none"        # no update longer than this leaves, whatever clip a task has
    confidentiality = ["none", "helpers", "masks", "he"]  # without "none": only sums that the coordinator cannot take apart
    authority = ""                    # fingerprint of the key directory's authority; empty pins the first one that comes
    allow_queries = true              # whether questions to the fleet are answered, within the same budget
    [releases]                        # models that are pushed to this device; none if left out
    models = ["digits"]               # their names
    root_file = "root.json"           # required with models: the keys that this device trusts, from the fleet's owner
    tags = ["lab"]                    # groups that a rollout may begin with, beside the hardware class
    trial_min = 10                    # how long a new release is watched before it stays
    max_kib_per_s = 0                 # most that fetching may take of the network; 0 is no limit
    num_threads = 1                   # of the check of a release
    check_time_limit_s = 120
    check_memory_limit_mb = 0         # limit of the check's address space; 0 is none, otherwise at least 256

    [committee]
    serve = false                     # true: on mains power, opens sums of masked updates as a member of a committee

``FLOCKWISE__TRAINING__NUM_THREADS=2`` overrides ``num_threads`` of ``[training]``. Relative paths count from the
directory of the file. What is not listed here is refused, with the nearest name that exists.
"""

import base64
import math
from typing import Annotated, Any, Literal

import msgspec

from broker_link.broker_url import BrokerUrl, parse_broker_url
from broker_link.errors import PlaintextRefused
from broker_link.tls import refuse_plaintext
from edge_client.eligibility.policy import EligibilitySection
from edge_client.privacy.rules import PrivacyBudget, PrivacyRules
from wire_protocol.identifiers import checked_identifier
from wire_protocol.signed import PUBLIC_KEY_BYTES

__all__ = [
    "BrokerSection",
    "CommitteeSection",
    "DataSection",
    "DeviceSection",
    "EdgeConfig",
    "EligibilitySection",
    "PrivacySection",
    "ReleasesSection",
    "TrainingSection",
    "config_as_dict",
]

_MIN_MEMORY_LIMIT_MB = 256


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Common settings of all sections. Their checks raise errors whose text begins with the key they are about."""


class DeviceSection(_Section, frozen=True, kw_only=True):
    """Who the device is and where it keeps things."""

    id: str = ""
    population: str
    state_dir: str = ""
    blob_cache_mb: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 512
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    max_write_mb_per_hour: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 200
    safe_mode_h: Annotated[float, msgspec.Meta(ge=0, le=8760)] = 6.0

    def __post_init__(self) -> None:
        checked_identifier(self.population, kind="population")
        if self.id:
            checked_identifier(self.id, kind="device")


class BrokerSection(_Section, frozen=True, kw_only=True):
    """Where the broker is and how to log in."""

    url: str
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    allow_plaintext: bool = False
    username: str = ""
    password_file: str = ""
    coordinator_key: str = ""

    def __post_init__(self) -> None:
        url = parse_broker_url(self.url)
        if self.ca_file and not url.is_tls:
            raise ValueError("ca_file is of no use with mqtt://; use mqtts:// for TLS")
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("cert_file and key_file belong together: give both or neither")
        if self.cert_file and not url.is_tls:
            raise ValueError("cert_file is of no use with mqtt://; use mqtts:// for TLS")
        self._refuse_plaintext(url)
        if self.coordinator_key and self.coordinator_key_bytes is None:
            raise ValueError(
                "coordinator_key is not 32 bytes in base64: copy the line of the coordinator's coordinator.pub"
            )
        if bool(self.username) != bool(self.password_file):
            raise ValueError("username and password_file belong together: give both or neither")
        if self.username and url.username:
            raise ValueError("the url names a user already; give the user once")

    @property
    def coordinator_key_bytes(self) -> bytes | None:
        """The coordinator's public key; None if none is pinned (or it is none)."""
        try:
            key = base64.b64decode(self.coordinator_key, validate=True)
        except ValueError:
            return None
        return key if len(key) == PUBLIC_KEY_BYTES else None

    def _refuse_plaintext(self, url: BrokerUrl) -> None:
        if self.allow_plaintext:
            return
        try:
            refuse_plaintext(url, remedy="broker.allow_plaintext = true allows it all the same")
        except PlaintextRefused as error:
            raise ValueError(f"url: {error}") from None


class DataSection(_Section, frozen=True, kw_only=True):
    """The local examples."""

    path: str


class TrainingSection(_Section, frozen=True, kw_only=True):
    """What training may use of this machine."""

    trainer: Literal["litert", "linear"] = "litert"
    num_threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    time_limit_s: Annotated[float, msgspec.Meta(gt=0)] = 3600.0
    memory_limit_mb: Annotated[int, msgspec.Meta(ge=0)] = 0
    idle_stop_s: Annotated[float, msgspec.Meta(ge=0)] = 60.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.time_limit_s) and math.isfinite(self.idle_stop_s)):
            raise ValueError("time_limit_s and idle_stop_s must be finite")
        if 0 < self.memory_limit_mb < _MIN_MEMORY_LIMIT_MB:
            raise ValueError(
                f"memory_limit_mb must be 0 or at least {_MIN_MEMORY_LIMIT_MB}: the trainer does not start with less"
            )


class PrivacySection(_Section, frozen=True, kw_only=True):
    """What the owner insists on before anything private leaves; see ``edge_client.privacy.release_desk``."""

    epsilon: Annotated[float, msgspec.Meta(ge=0)] = 8.0
    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 1e-5
    required: bool = False
    min_contributors: Annotated[int, msgspec.Meta(ge=1)] = 10
    min_noise_multiplier: Annotated[float, msgspec.Meta(gt=0)] = 0.3
    modes: tuple[Literal["local", "distributed", "central"], ...] = ("distributed", "local")
    max_clipping_norm: Annotated[float, msgspec.Meta(gt=0)] | Literal["none"] = "none"
    confidentiality: tuple[Literal["none", "helpers", "masks", "he"], ...] = ("none", "helpers", "masks", "he")
    authority: str = ""
    allow_queries: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and math.isfinite(self.min_noise_multiplier)):
            raise ValueError("epsilon and min_noise_multiplier must be finite")

    @property
    def rules(self) -> PrivacyRules:
        """The same as the desk takes it."""
        return PrivacyRules(
            budget=PrivacyBudget(epsilon=self.epsilon, target_delta=self.delta),
            is_required=self.required,
            min_contributors=self.min_contributors,
            min_noise_multiplier=self.min_noise_multiplier,
            modes=frozenset(self.modes),
            max_clipping_norm=math.inf if self.max_clipping_norm == "none" else self.max_clipping_norm,
            confidentiality=frozenset(self.confidentiality),
            allow_queries=self.allow_queries,
        )


class ReleasesSection(_Section, frozen=True, kw_only=True):
    """Models that are pushed to this device."""

    models: tuple[str, ...] = ()
    root_file: str = ""
    tags: tuple[str, ...] = ()
    trial_min: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    max_kib_per_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    num_threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    check_time_limit_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    check_memory_limit_mb: Annotated[int, msgspec.Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        for name in self.models:
            checked_identifier(name, kind="model")
        for tag in self.tags:
            checked_identifier(tag, kind="tag")
        if len(set(self.models)) != len(self.models):
            raise ValueError("models names one twice")
        if self.models and not self.root_file:
            raise ValueError(
                "root_file is needed: the keys that this device trusts (the root.json that flockwise keys init made)"
            )
        if not all(map(math.isfinite, (self.trial_min, self.max_kib_per_s, self.check_time_limit_s))):
            raise ValueError("trial_min, max_kib_per_s and check_time_limit_s must be finite")
        if 0 < self.check_memory_limit_mb < _MIN_MEMORY_LIMIT_MB:
            raise ValueError(f"check_memory_limit_mb must be 0 or at least {_MIN_MEMORY_LIMIT_MB}")


class CommitteeSection(_Section, frozen=True, kw_only=True):
    """Whether this device helps to open sums under pairwise masks (`edge_client.opener.committee_desk`)."""

    serve: bool = False


class EdgeConfig(_Section, frozen=True, kw_only=True):
    """Everything."""

    device: DeviceSection
    broker: BrokerSection
    data: DataSection
    training: TrainingSection = TrainingSection()
    eligibility: EligibilitySection = EligibilitySection()
    privacy: PrivacySection = PrivacySection()
    releases: ReleasesSection = ReleasesSection()
    committee: CommitteeSection = CommitteeSection()


def config_as_dict(config: EdgeConfig) -> dict[str, Any]:
    """The configuration for showing: a password in the broker's url is left out."""
    shown: dict[str, Any] = msgspec.to_builtins(config)
    shown["broker"]["url"] = str(parse_broker_url(config.broker.url))
    return shown
