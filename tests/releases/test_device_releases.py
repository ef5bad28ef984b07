"""A device follows orders: fetches in pieces, resumes, tries, switches, rolls back; whatever fails, it has a model."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from broker_link.failpoints import hit
from broker_link.memory_broker import MemoryBroker
from coordinator.releases.drafting import GoldenRules, ReleaseDraft, draft_release, pack_model
from coordinator.releases.publisher import channel_messages
from edge_client.errors import ReleaseRefused
from edge_client.releases.agent import ReleaseAgent
from edge_client.releases.check_child import CheckVerdict
from edge_client.releases.compatibility import DeviceFacts
from edge_client.releases.fetch import ReleaseFetch
from edge_client.releases.follower import ReleaseFollower
from edge_client.releases.mirror import ReleaseMirror
from edge_client.releases.piece_file import PieceFile
from edge_client.releases.release_table import ReleaseStage
from edge_client.releases.settings import ReleaseSettings
from edge_client.releases.slots import MODEL_FILE, ModelSlots
from edge_client.releases.trusted import TrustedReleases
from edge_client.releases.unpacking import unpack_model
from edge_client.state_writer import StateWriter
from edge_client.time_floor import TimeFloor
from tests.releases.conftest import GOLDEN, Channel, make_manifest, make_order, model_blob
from wire_protocol.blobs import split_blob
from wire_protocol.release_report import ReleaseFailure, ReleaseReport, ReleaseState

FACTS = DeviceFacts(runtime_version="2.3.0", memory_mb=1000.0, tags=frozenset({"x86_64"}))


class ScriptedChecks:
    """Verdicts by release number; everything not named passes."""

    def __init__(self, verdicts: dict[int, list[CheckVerdict]]) -> None:
        self.verdicts = verdicts
        self.started: list[int] = []
        self._slot: Path | None = None

    def start(self, slot: Path) -> None:
        self._slot = slot
        self.started.append(int(slot.resolve().name))

    def poll(self) -> CheckVerdict | None:
        if self._slot is None:
            return None
        number = int(self._slot.resolve().name)
        self._slot = None
        planned = self.verdicts.get(number, [])
        return planned.pop(0) if planned else CheckVerdict()

    def next_wakeup(self) -> float:
        return float("inf") if self._slot is None else 0.0

    def stop(self) -> None:
        self._slot = None


class Fleetlet:
    """One device on an in-memory broker, on a clock of its own."""

    def __init__(self, channel: Channel, directory: Path, *, max_bytes_per_s: float = float("inf")) -> None:
        self.channel = channel
        self.directory = directory
        self.max_bytes_per_s = max_bytes_per_s
        self.now = 1000.0
        self.broker = MemoryBroker(schedule=lambda _delay, deliver: deliver())
        self.verdicts: dict[int, list[CheckVerdict]] = {}
        self.reports: list[ReleaseReport] = []
        self.every_number: list[int] = []
        self.models: dict[int, bytes] = {}
        self.boot()

    def boot(self) -> None:
        """As after a power cut: only the disk remembers."""
        writer = StateWriter()
        mirror = ReleaseMirror()
        floor = TimeFloor(self.directory / "floor", writer=writer, clock=self.channel.clock)
        trusted = TrustedReleases(self.directory / "tuf", root=self.channel.first_root, mirror=mirror, floor=floor)
        self.checks = ScriptedChecks(self.verdicts)
        self.slots = ModelSlots(self.directory / "models" / "digits", writer=writer)
        self.agent = ReleaseAgent(
            population="digits", device_id="pi-1", name="digits", facts=FACTS, slots=self.slots, checks=self.checks,
            uniform=random.Random(1).uniform,
            settings=ReleaseSettings(trial_s=60.0, max_bytes_per_s=self.max_bytes_per_s),
        )  # fmt: skip
        self.follower = ReleaseFollower(population="digits", mirror=mirror, trusted=trusted, agents=[self.agent])
        self.link = self.broker.link(subscriptions=[], sink=self._sink)
        self.link.start()

    def _sink(self, event: object) -> None:
        self.follower.handle(event, self.now)  # type: ignore[arg-type]

    def publish(self) -> None:
        for topic, payload in channel_messages(self.channel.repository, "digits"):
            self.broker.publish(topic, payload, retain=True)

    def turn(self) -> None:
        self.follower.tick(self.now)
        self.link.follow(self.follower.filters)
        self.reports += self.follower.pop_reports()
        if self.slots.current_path.exists():
            self.every_number.append(int(self.slots.current_path.resolve().name))
            size = (self.slots.current_path / MODEL_FILE).stat().st_size
            number = self.every_number[-1]
            assert size == len(self.models.get(number) or model_blob(number).data)

    def run(self, seconds: float = 5.0, *, until: Callable[[], bool] = lambda: False) -> None:
        ends_at = self.now + seconds
        while self.now < ends_at and not until():
            self.turn()
            self.now += min(max(self.follower.next_wakeup() - self.now, 0.5), 10.0)

    @property
    def states(self) -> list[tuple[int, ReleaseState]]:
        return [(report.number, report.state) for report in self.reports]


@pytest.fixture
def fleetlet(channel: Channel, tmp_path: Path) -> Fleetlet:
    return Fleetlet(channel, tmp_path / "device")


def _roll_out(channel: Channel, number: int, *, serial: int) -> None:
    channel.release(number)
    channel.repository.set_order(make_order(serial, baseline=1, candidate=number, permille=1000))


def test_the_first_release_arrives_is_tried_and_settles(fleetlet: Fleetlet) -> None:
    fleetlet.publish()
    fleetlet.run(120)
    assert fleetlet.agent.current == 1
    assert fleetlet.agent.stage is ReleaseStage.SETTLED
    assert fleetlet.states == [(1, ReleaseState.FETCHING), (1, ReleaseState.TRIAL), (1, ReleaseState.SETTLED)]
    assert fleetlet.checks.started == [1, 1], "before the switch, and after it through the stable path"


def test_a_release_that_fails_its_check_is_never_in_use(fleetlet: Fleetlet) -> None:
    fleetlet.publish()
    fleetlet.run(120)
    fleetlet.verdicts[2] = [CheckVerdict(failure=ReleaseFailure.NON_FINITE)]
    _roll_out(fleetlet.channel, 2, serial=2)
    fleetlet.publish()
    fleetlet.run(120)
    assert set(fleetlet.every_number) == {1}
    assert fleetlet.reports[-1].failure is ReleaseFailure.NON_FINITE
    fleetlet.boot()
    fleetlet.run(120)
    assert fleetlet.checks.started == [], "a refused release is not tried again after a restart"
    assert fleetlet.states[-1] == (2, ReleaseState.FAILED)


def test_a_disk_that_fills_up_after_a_good_check_costs_time_and_nothing_else(
    fleetlet: Fleetlet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleetlet.publish()
    fleetlet.run(120)
    _roll_out(fleetlet.channel, 2, serial=2)
    fleetlet.publish()
    fleetlet.run(30, until=lambda: fleetlet.agent.stage is ReleaseStage.CHECKING)
    assert fleetlet.agent.stage is ReleaseStage.CHECKING

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(StateWriter, "write", full)
        fleetlet.run(10)
        assert fleetlet.agent.stage is ReleaseStage.SETTLED
        assert fleetlet.agent.counts["not_kept"] == 1
        assert fleetlet.agent.current == 1
    fleetlet.run(300)
    assert fleetlet.agent.current == 2
    assert fleetlet.agent.stage is ReleaseStage.SETTLED


def test_a_release_that_fails_in_its_trial_is_rolled_back(fleetlet: Fleetlet) -> None:
    fleetlet.publish()
    fleetlet.run(120)
    fleetlet.verdicts[2] = [CheckVerdict(), CheckVerdict(failure=ReleaseFailure.SLOW, detail="9 ms")]
    _roll_out(fleetlet.channel, 2, serial=2)
    fleetlet.publish()
    fleetlet.run(120)
    assert 2 in fleetlet.every_number
    assert fleetlet.agent.current == 1
    assert fleetlet.reports[-1].failure is ReleaseFailure.SLOW
    assert fleetlet.reports[-1].current == 1


def test_apps_that_die_on_a_release_roll_it_back(fleetlet: Fleetlet) -> None:
    fleetlet.publish()
    fleetlet.run(120)
    _roll_out(fleetlet.channel, 2, serial=2)
    fleetlet.publish()
    fleetlet.run(20, until=lambda: fleetlet.agent.stage is ReleaseStage.TRIAL)
    uses = fleetlet.slots.current_path.parent / "uses"
    for pid in (4_000_001, 4_000_002, 4_000_003):
        (uses / f"2-{pid}").touch()
    fleetlet.run(5)
    assert fleetlet.agent.current == 1
    assert fleetlet.reports[-1].failure is ReleaseFailure.CRASHED


def test_an_order_to_go_back_is_followed_without_a_download(fleetlet: Fleetlet) -> None:
    fleetlet.publish()
    fleetlet.run(120)
    _roll_out(fleetlet.channel, 2, serial=2)
    fleetlet.publish()
    fleetlet.run(120)
    assert fleetlet.agent.current == 2
    before = fleetlet.agent.counts["bytes"]
    fleetlet.channel.repository.set_order(make_order(3, baseline=1))
    fleetlet.publish()
    fleetlet.run(120)
    assert fleetlet.agent.current == 1
    assert fleetlet.agent.counts["bytes"] == before


def test_a_paused_order_begins_nothing(fleetlet: Fleetlet) -> None:
    fleetlet.publish()
    fleetlet.run(120)
    fleetlet.channel.release(2)
    paused = make_order(2, baseline=1, candidate=2, permille=1000)
    fleetlet.channel.repository.set_order(type(paused)(**{**_fields(paused), "is_paused": True}))
    fleetlet.publish()
    fleetlet.run(60)
    assert fleetlet.agent.current == 1
    assert fleetlet.agent.topics == frozenset()


def _fields(order: object) -> dict[str, object]:
    return {name: getattr(order, name) for name in order.__struct_fields__}  # type: ignore[attr-defined]


def test_an_incompatible_release_is_refused_before_a_byte_is_fetched(fleetlet: Fleetlet) -> None:
    manifest = make_manifest(2)
    import msgspec

    needy = msgspec.structs.replace(manifest, needs=msgspec.structs.replace(manifest.needs, min_runtime="9.0.0"))
    fleetlet.publish()
    fleetlet.run(120)
    fetched = fleetlet.agent.counts["bytes"]
    fleetlet.channel.repository.add_release(needy, [model_blob(2).data, GOLDEN.data])
    fleetlet.channel.repository.set_order(make_order(2, baseline=1, candidate=2, permille=1000))
    fleetlet.publish()
    fleetlet.run(60)
    assert fleetlet.reports[-1].failure is ReleaseFailure.INCOMPATIBLE
    assert fleetlet.agent.counts["bytes"] == fetched


def test_fifty_random_cuts_refetch_at_most_one_piece_each(channel: Channel, tmp_path: Path) -> None:
    """A 5 MB release, 50 power cuts at random moments: memory and connection gone, the disk stays."""
    rng = random.Random(50)
    model = split_blob(rng.randbytes(5_000_000))
    import msgspec

    manifest = msgspec.structs.replace(make_manifest(2), model=model.ref)
    channel.repository.add_release(manifest, [model.data, GOLDEN.data])
    channel.repository.set_order(make_order(2, baseline=2))
    path, delivered, cuts = tmp_path / "piece", [0], 0
    broker = MemoryBroker(schedule=lambda _delay, deliver: deliver())
    for topic, payload in channel_messages(channel.repository, "digits"):
        broker.publish(topic, payload, retain=True)
    cut_after = sorted(rng.sample(range(1, 5_000_000), 50))
    while not (file := PieceFile(path, model.ref)).is_complete:
        fetch = ReleaseFetch(population="digits", files=[file], uniform=rng.uniform, window=4)

        def sink(event: object, fetch: ReleaseFetch = fetch) -> None:
            topic = getattr(event, "topic", "")
            if "/piece/" not in topic:
                return
            is_cut = bool(cut_after) and delivered[0] + len(event.payload) >= cut_after[0]  # type: ignore[attr-defined]
            if is_cut:
                raise ConnectionResetError
            delivered[0] += len(event.payload)  # type: ignore[attr-defined]
            fetch.take(topic, event.payload, 0.0)  # type: ignore[attr-defined]

        link = broker.link(subscriptions=[], sink=sink)
        link.start()
        try:
            while not file.is_complete:
                fetch.tick(0.0)
                link.follow(fetch.topics)
        except ConnectionResetError:
            cut_after.pop(0)
            cuts += 1
            link.lose("cut")
    assert cuts == 50
    assert file.read() == model.data
    digests = len(model.piece_digests)
    assert delivered[0] <= 5_000_000 + digests * (cuts + 1) + cuts * model.ref.piece_bytes


def _draft(number: int, model: bytes, *bases: bytes) -> ReleaseDraft:
    plain = make_manifest(number)
    return draft_release(
        name="digits", number=number, model=model, tensors=(plain.input, plain.output), needs=plain.needs,
        lineage=plain.lineage, bases=bases, piece_bytes=32 * 1024,
        golden=GoldenRules(
            data=GOLDEN.data, num_examples=8, max_abs_error=1e-3, min_agreement=0.9, max_latency_ms=50.0
        ),
    )  # fmt: skip


def test_a_release_comes_as_a_difference_to_the_one_that_is_here(channel: Channel, tmp_path: Path) -> None:
    rng = random.Random(9)
    first = rng.randbytes(600_000)
    second = first[:200_000] + rng.randbytes(20_000) + first[220_000:]
    fleetlet = Fleetlet(channel, tmp_path / "device")
    fleetlet.models = {2: first, 3: second}
    draft = _draft(2, first)
    channel.repository.add_release(draft.manifest, draft.blobs)
    channel.repository.set_order(make_order(2, baseline=2))
    fleetlet.publish()
    fleetlet.run(120)
    whole = fleetlet.agent.counts["bytes"]
    assert whole > 600_000
    draft = _draft(3, second, first)
    channel.repository.add_release(draft.manifest, draft.blobs)
    channel.repository.set_order(make_order(3, baseline=3))
    fleetlet.publish()
    fleetlet.run(120)
    assert fleetlet.agent.current == 3
    assert (fleetlet.slots.current_path / MODEL_FILE).read_bytes() == second
    assert fleetlet.agent.counts["bytes"] - whole < 40_000


@pytest.mark.parametrize("damage", ["size", "content", "bomb"])
def test_a_packed_model_gives_its_manifests_bytes_or_nothing(damage: str) -> None:
    model = random.Random(1).randbytes(50_000)
    wanted = split_blob(model).ref
    packed = {
        "size": pack_model(model + b"x", base=None),
        "content": pack_model(model[:-1] + b"x", base=None),
        "bomb": pack_model(bytes(100_000_000), base=None),
    }[damage]
    with pytest.raises(ReleaseRefused):
        unpack_model(packed, wanted, base=None)


def test_what_is_on_disk_is_believed_only_by_its_hash(tmp_path: Path) -> None:
    blob = split_blob(random.Random(3).randbytes(500_000))
    file = PieceFile(tmp_path / "f", blob.ref)
    file.set_list(blob.piece_digests)
    for index in range(blob.ref.num_pieces):
        file.add(index, blob.piece(index))
    data = bytearray((tmp_path / "f").read_bytes())
    data[200_000] ^= 1
    (tmp_path / "f").write_bytes(data)
    assert PieceFile(tmp_path / "f", blob.ref).missing == [200_000 // blob.ref.piece_bytes]


def test_a_rate_limit_is_kept(channel: Channel, tmp_path: Path) -> None:
    fleetlet = Fleetlet(channel, tmp_path / "slow", max_bytes_per_s=20_000.0)
    fleetlet.publish()
    fleetlet.run(3)
    began = fleetlet.now
    fleetlet.run(600, until=lambda: fleetlet.agent.stage is ReleaseStage.TRIAL)
    size = model_blob(1).ref.num_bytes
    assert size / 20_000.0 - 10 <= fleetlet.now - began + 3 <= size / 20_000.0 + 40


@pytest.mark.parametrize(
    "failpoint",
    ["device.release.after_slot", "device.release.before_switch", "device.release.after_switch", "device.release.before_rollback", "device.release.after_rollback"],
)  # fmt: skip
def test_a_death_anywhere_leaves_a_whole_model_in_use(
    fleetlet: Fleetlet, failpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleetlet.publish()
    fleetlet.run(120)
    fleetlet.verdicts[2] = [CheckVerdict(), CheckVerdict(failure=ReleaseFailure.SLOW)]
    _roll_out(fleetlet.channel, 2, serial=2)
    fleetlet.publish()
    deaths = [0]

    def die(name: str) -> None:
        if name == failpoint and not deaths[0]:
            deaths[0] += 1
            raise SystemExit(name)

    monkeypatch.setattr("edge_client.releases.slots.hit", die)
    try:
        fleetlet.run(120)
    except SystemExit:
        monkeypatch.setattr("edge_client.releases.slots.hit", hit)
    assert deaths == [1]
    assert (fleetlet.slots.current_path / MODEL_FILE).exists()
    fleetlet.boot()
    fleetlet.run(240)
    assert fleetlet.agent.stage is ReleaseStage.SETTLED
    assert fleetlet.agent.current in {1, 2}
    assert (fleetlet.slots.current_path / MODEL_FILE).read_bytes() == model_blob(fleetlet.agent.current).data
