"""Gates and rollouts: only devices that ran a release to an end move a stage; whatever is unclear stops it."""

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from coordinator.errors import IllegalTransition, ReleaseError
from coordinator.releases.gates import GateRules, Verdict, decide, evidence_of
from coordinator.releases.model_card import differences, model_card
from coordinator.releases.rollout_book import RolloutBook
from coordinator.releases.rollout_table import RolloutState
from coordinator.releases.rollouts import Rollouts, check_stages
from tests.releases.conftest import Channel, Clock, make_manifest
from wire_protocol.release import RolloutOrder, is_in_stage, wanted_release
from wire_protocol.release_report import ReleaseCheck, ReleaseFailure, ReleaseReport, ReleaseState

RULES = GateRules(min_devices=10)


def _reports(
    *, settled: int = 0, fetching: int = 0, trial: int = 0, latency_ms: float = 1.0, **failures: int
) -> list[ReleaseReport]:
    check = ReleaseCheck(latency_ms=latency_ms, max_abs_error=0.0, agreement=1.0, peak_memory_mb=1.0)

    def report(state: ReleaseState, failure: ReleaseFailure | None = None) -> ReleaseReport:
        return ReleaseReport(name="digits", serial=2, number=2, state=state, current=2, failure=failure, check=check)

    found = [report(ReleaseState.SETTLED)] * settled + [report(ReleaseState.FETCHING)] * fetching
    found += [report(ReleaseState.TRIAL)] * trial
    for kind, num in failures.items():
        found += [report(ReleaseState.FAILED, ReleaseFailure(kind))] * num
    return found


def _decide(reports: list[ReleaseReport], *, age_s: float = 60.0, rules: GateRules = RULES) -> Verdict:
    return decide(evidence_of(reports, candidate=2, baseline=1), rules, stage_age_s=age_s).verdict


@pytest.mark.parametrize(
    ("reports", "verdict"),
    [
        (_reports(settled=10), Verdict.ADVANCE),
        (_reports(settled=9), Verdict.WAIT),
        (_reports(fetching=500, trial=500, settled=9), Verdict.WAIT),
        (_reports(settled=99, slow=1), Verdict.ADVANCE),
        (_reports(settled=90, slow=10), Verdict.ABORT),
        (_reports(settled=98, crashed=2), Verdict.ABORT),
        (_reports(settled=98, non_finite=2), Verdict.ABORT),
        (_reports(settled=4, incompatible=20), Verdict.PAUSE),
        (_reports(settled=10, incompatible=5), Verdict.ADVANCE),
    ],
)
def test_a_stage_is_judged_by_devices_that_tried_the_release_to_an_end(
    reports: list[ReleaseReport], verdict: Verdict
) -> None:
    assert _decide(reports) is verdict


def test_what_is_not_conclusive_in_time_is_paused() -> None:
    assert _decide(_reports(settled=9), age_s=25 * 3600.0) is Verdict.PAUSE


def test_a_slower_release_is_paused() -> None:
    before = [
        ReleaseReport(
            name="digits", serial=1, number=1, state=ReleaseState.SETTLED, current=1,
            check=ReleaseCheck(latency_ms=1.0, max_abs_error=0.0, agreement=1.0, peak_memory_mb=1.0),
        )
    ]  # fmt: skip
    assert _decide([*before, *_reports(settled=20, latency_ms=1.4)]) is Verdict.ADVANCE
    assert _decide([*before, *_reports(settled=20, latency_ms=1.6)]) is Verdict.PAUSE


def test_stages_grow_by_the_same_devices_and_hold_their_share() -> None:
    devices = [f"device-{index}" for index in range(20_000)]
    before: set[str] = set()
    for permille in (10, 50, 250, 1000):
        order = RolloutOrder(name="m", serial=1, baseline=1, candidate=2, permille=permille, salt=f"salt-{7}-of-it")
        stage = {device for device in devices if is_in_stage(order, device, frozenset())}
        assert before <= stage
        assert abs(len(stage) / len(devices) - permille / 1000) < 0.01
        before = stage
    assert len(before) == len(devices)


def test_another_salt_draws_other_devices_and_tags_keep_others_out() -> None:
    def drawn(salt: str, tags: tuple[str, ...] = ()) -> set[int]:
        order = RolloutOrder(name="m", serial=1, baseline=1, candidate=2, permille=100, salt=salt, tags=tags)
        return {index for index in range(5000) if wanted_release(order, f"d{index}", frozenset({"lab"})) == 2}

    first, second = drawn("salt-one-1"), drawn("salt-two-2")
    assert len(first & second) < 0.3 * len(first)
    assert drawn("salt-one-1", ("lab",)) == first
    assert drawn("salt-one-1", ("aarch64",)) == set()


@pytest.fixture
def rollouts(channel: Channel, tmp_path: Path, clock: Clock) -> Rollouts:
    channel.release(2)
    return Rollouts(channel.repository, RolloutBook(tmp_path / "rollouts.sqlite"), now=clock)


def _tell(rollouts: Rollouts, reports: list[ReleaseReport]) -> None:
    rollouts._book.note_reports([(f"d{index}", report) for index, report in enumerate(reports)], now=1.0)


def _order(channel: Channel) -> RolloutOrder:
    return channel.repository.orders()["digits"]


def test_a_rollout_goes_through_its_stages_to_the_whole_fleet(rollouts: Rollouts, channel: Channel) -> None:
    rollouts.start("digits", 2, rules=RULES)
    seen = [_order(channel).permille]
    _tell(rollouts, _reports(settled=2000))
    for _ in range(4):
        rollouts.step("digits")
        seen.append(_order(channel).permille)
    assert seen == [10, 50, 250, 1000, 0]
    order = _order(channel)
    assert (order.baseline, order.candidate) == (2, 0)
    assert rollouts.step("digits") is None


def test_devices_of_an_earlier_stage_do_not_let_the_next_one_through(
    rollouts: Rollouts, channel: Channel, clock: Clock
) -> None:
    rollouts.start("digits", 2, rules=RULES)
    order = _order(channel)
    first = [device for index in range(5000) if is_in_stage(order, device := f"d{index}", frozenset())]
    settled = _reports(settled=1)[0]
    rollouts._book.note_reports([(device, settled) for device in first], now=1.0)
    before = [
        (f"d{index}", msgspec.structs.replace(settled, number=1)) for index in range(5000) if f"d{index}" not in first
    ]
    rollouts._book.note_reports(before, now=1.0)
    for _ in range(3):
        rollouts.step("digits")
    assert _order(channel).permille == 50, "nobody who came with the second stage has tried it yet"
    clock.now += 25 * 3600.0
    rollouts.step("digits")
    assert _order(channel).is_paused


def test_crashes_take_the_release_back(rollouts: Rollouts, channel: Channel) -> None:
    rollouts.start("digits", 2, rules=RULES)
    _tell(rollouts, _reports(settled=9, crashed=1))
    rollouts.step("digits")
    order = _order(channel)
    assert (order.baseline, order.candidate, order.permille) == (1, 0, 0)
    assert rollouts._book.rollouts("digits")[-1][1].state is RolloutState.ABORTED


def test_pause_resume_abort_and_rollback(rollouts: Rollouts, channel: Channel) -> None:
    rollouts.start("digits", 2)
    rollouts.pause("digits")
    assert _order(channel).is_paused
    _tell(rollouts, _reports(settled=100))
    assert rollouts.step("digits") is None
    rollouts.resume("digits")
    assert not _order(channel).is_paused
    with pytest.raises(IllegalTransition):
        rollouts.resume("digits")
    rollouts.abort("digits")
    assert _order(channel).candidate == 0
    with pytest.raises(ReleaseError, match="under way"):
        rollouts.pause("digits")
    rollouts.roll_back("digits", 2)
    assert _order(channel).baseline == 2
    rollouts.step("digits")
    assert _order(channel).baseline == 2
    rollouts.roll_back("digits", 1)
    assert _order(channel).baseline == 1


@pytest.mark.parametrize("change", ["start", "abort", "step"])
def test_a_death_between_book_and_order_is_mended_by_the_next_step(
    rollouts: Rollouts, channel: Channel, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    if change != "start":
        rollouts.start("digits", 2, rules=RULES)
    _tell(rollouts, _reports(settled=20))
    changes: dict[str, Callable[[], object]] = {
        "start": lambda: rollouts.start("digits", 2, rules=RULES),
        "abort": lambda: rollouts.abort("digits"),
        "step": lambda: rollouts.step("digits"),
    }

    def die(order: RolloutOrder) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(channel.repository, "set_order", die)
        with pytest.raises(SystemExit):
            changes[change]()
    _tell(rollouts, [])
    rollouts._book._db.execute("DELETE FROM reports")
    rollouts.step("digits")
    wanted = rollouts._book.rollouts("digits")[-1][1]
    order = _order(channel)
    assert order.permille == (wanted.permille if wanted.is_open else 0)
    assert order.salt == wanted.salt


def test_a_second_rollout_and_worse_evaluations_are_refused(rollouts: Rollouts, channel: Channel) -> None:
    rollouts.start("digits", 2)
    with pytest.raises(ReleaseError, match="under way"):
        rollouts.start("digits", 2)
    with pytest.raises(ReleaseError, match="rise"):
        check_stages([50, 10, 1000])
    with pytest.raises(ReleaseError, match="no release 9"):
        rollouts.roll_back("digits", 9)


def test_random_rollouts_never_order_an_unsigned_release_and_serials_rise(rollouts: Rollouts, channel: Channel) -> None:
    rng = random.Random(4)
    serial = _order(channel).serial
    for _ in range(40):
        verb = rng.choice(["start", "pause", "resume", "abort", "step", "roll_back"])
        try:
            match verb:
                case "start":
                    rollouts.start("digits", rng.choice([1, 2, 3]), rules=RULES)
                case "step":
                    _tell(rollouts, _reports(settled=rng.randrange(30), crashed=rng.randrange(3)))
                    rollouts.step("digits")
                case "roll_back":
                    rollouts.roll_back("digits", rng.choice([1, 2, 3]))
                case _:
                    getattr(rollouts, verb)("digits")
        except (ReleaseError, IllegalTransition):
            pass
        order = _order(channel)
        assert order.serial >= serial
        assert {order.baseline, order.candidate} <= {0, 1, 2}
        serial = order.serial


def test_a_card_says_what_is_signed() -> None:
    first, second = make_manifest(1), make_manifest(2)
    card = model_card(first)
    assert first.model.sha256.hex() in card
    assert "without differential privacy" in card
    assert set(differences(first, second)) == {"number", "bytes", "sha256"} or set(differences(first, second)) == {
        "number",
        "sha256",
    }
