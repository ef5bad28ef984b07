"""An aggregator that comes late: what was counted before it is folded once, in the journal's order; its failure is told."""

import threading

import numpy as np
import pytest

from coordinator.actions import Fold, FoldMetrics
from coordinator.aggregation import ClientUpdate, ServerState
from coordinator.aggregation_spec import AggregationSpec
from coordinator.errors import StateMismatch
from coordinator.late_aggregator import LateAggregator
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.round_journal import Contribution, RoundJournal
from coordinator.round_sums import RoundSums
from coordinator.round_table import Member
from coordinator.server import open_task_state
from coordinator.task_bundle import TaskBundle
from wire_protocol.errors import WireError
from wire_protocol.messages import Metrics, RoundKind
from wire_protocol.plan import TensorSpec, TrainingPlan
from wire_protocol.tensors import encode_tensors

PLAN = TrainingPlan(batch_size=4, learning_rate=0.1, input_shape=(2,), num_classes=2, weights=(TensorSpec(shape=(2,)),))
METRICS = Metrics(loss_sum=1.0, num_correct=0.0, weight_sum=2.0)
ZEROS = np.zeros(2, np.float32)
START = ServerState(num_commits=0, num_weights=1, leaves=(ZEROS,))


class Remembering(NumpyMeanAggregator):
    """The numpy mean; remembers the first number of every update that was folded, and what it was begun with."""

    def __init__(self) -> None:
        super().__init__(PLAN.weights, AggregationSpec())
        self.folded: list[float] = []
        self.initialized = 0

    def initialize(self, initial_weights):
        self.initialized += 1
        return super().initialize(initial_weights)

    def begin(self, state):
        accumulator = super().begin(state)
        fold = accumulator.fold

        def remember(update):
            self.folded.append(float(update.model_delta[0][0]))
            fold(update)

        accumulator.fold = remember
        return accumulator


class Bench:
    """A journal with a round of ten devices, and its sums."""

    def __init__(self, directory, *, state=START, num_counted=0) -> None:
        self.journal = RoundJournal(directory / "journal.sqlite")
        self.journal.open_round(1, RoundKind.TRAIN, base_commits=0)
        self.journal.assign(1, {f"d{index}": Member(nonce=bytes([index]) * 16) for index in range(10)})
        self.aggregator = Remembering()
        self.late = LateAggregator(lambda: self.aggregator)
        self.sums = RoundSums(aggregator=self.late, journal=self.journal, plan=PLAN)
        self.sums.begin(1, RoundKind.TRAIN, state, num_counted=num_counted)

    def note(self, value: int) -> Fold:
        encoded = encode_tensors((np.full(2, value, np.float32),))
        row = Contribution(device_id=f"d{value}", model_delta=encoded, aggregation_weight=1.0, metrics=METRICS)
        self.journal.add(1, row)
        update = ClientUpdate(model_delta=(np.full(2, value, np.float32),), aggregation_weight=1.0, metrics=METRICS)
        return Fold(device_id=f"d{value}", update=update, encoded=encoded)


@pytest.mark.parametrize("arrives_after", range(6))
def test_every_counted_update_is_folded_once_and_in_order_whenever_the_aggregator_comes(tmp_path, arrives_after):
    bench = Bench(tmp_path)
    for value in range(5):
        if value == arrives_after:
            bench.late.make_now()
            assert bench.sums.open()
            if value % 2:
                bench.sums.catch_up()
        bench.sums.count(bench.note(value))
    if arrives_after == 5:
        bench.late.make_now()
    assert bench.sums.open()
    bench.sums.catch_up()
    bench.sums.catch_up()
    assert bench.aggregator.folded == [0.0, 1.0, 2.0, 3.0, 4.0]
    np.testing.assert_allclose(bench.sums.finish_training().state.weights[0], [2.0, 2.0])


def test_what_is_noted_and_not_counted_yet_is_left_out(tmp_path):
    bench = Bench(tmp_path)
    bench.sums.count(bench.note(1))
    pending = bench.note(2)
    bench.late.make_now()
    bench.sums.open()
    bench.sums.catch_up()
    assert bench.aggregator.folded == [1.0]
    bench.sums.count(pending)
    assert bench.aggregator.folded == [1.0, 2.0]


def test_a_sum_that_lacks_a_counted_update_is_never_finished(tmp_path):
    bench = Bench(tmp_path)
    bench.sums.count(bench.note(1))
    bench.late.make_now()
    bench.sums.open()
    with pytest.raises(AssertionError, match="0 of 1"):
        bench.sums.finish_training()


def test_an_evaluation_is_folded_from_the_journal_too(tmp_path):
    bench = Bench(tmp_path)
    bench.sums.begin(1, RoundKind.EVALUATE, START)
    row = Contribution(device_id="d1", model_delta=None, aggregation_weight=1.0, metrics=METRICS)
    bench.journal.add(1, row)
    bench.sums.count(FoldMetrics(device_id="d1", metrics=METRICS))
    bench.late.make_now()
    bench.sums.open()
    bench.sums.catch_up()
    assert bench.sums.finish_evaluation()["loss"] == 0.5


def test_bytes_that_cannot_be_read_again_are_said_and_not_skipped(tmp_path):
    bench = Bench(tmp_path, num_counted=1)
    row = Contribution(device_id="d1", model_delta=b"no tensors", aggregation_weight=1.0, metrics=METRICS)
    bench.journal.add(1, row)
    bench.late.make_now()
    bench.sums.open()
    with pytest.raises(WireError):
        bench.sums.catch_up()


def test_only_a_state_without_commits_is_begun_by_the_aggregator(tmp_path):
    bench = Bench(tmp_path)
    bench.late.make_now()
    bench.sums.open()
    assert bench.aggregator.initialized == 1
    bench.sums.begin(1, RoundKind.TRAIN, ServerState(num_commits=1, num_weights=1, leaves=(ZEROS,)))
    assert bench.aggregator.initialized == 1


def test_a_state_of_another_aggregator_is_refused_when_the_aggregator_comes(tmp_path):
    bench = Bench(tmp_path, state=ServerState(num_commits=1, num_weights=1, leaves=(ZEROS, ZEROS)))
    assert not bench.sums.open()
    bench.late.make_now()
    with pytest.raises(StateMismatch):
        bench.sums.open()


def test_an_aggregator_that_cannot_be_made_fails_whoever_asks_for_it():
    def fail():
        raise StateMismatch("compiled for another model")

    late = LateAggregator(fail)
    assert late.get() is None
    late.make_now()
    with pytest.raises(StateMismatch, match="another model"):
        late.get()


def test_it_is_made_once_and_in_another_thread():
    makers = []
    done = threading.Event()

    def make():
        makers.append(threading.current_thread())
        done.set()
        return Remembering()

    late = LateAggregator(make)
    late.start()
    late.start()
    assert done.wait(10.0)
    assert [maker is threading.main_thread() for maker in makers] == [False]


def test_the_first_rounds_weights_are_kept_also_if_the_bundle_is_exported_again(tmp_path):
    first = TaskBundle(plan=PLAN, model_bytes=b"m", initial_weights=(np.ones(2, np.float32),))
    again = TaskBundle(plan=PLAN, model_bytes=b"m", initial_weights=(np.full(2, 7, np.float32),))
    assert first.task_id == again.task_id
    for bundle, is_resumed in ((first, False), (again, True)):
        task = open_task_state(tmp_path, bundle)
        task.journal.close()
        assert (task.state.num_commits, task.is_resumed) == (0, is_resumed)
        np.testing.assert_array_equal(task.state.weights[0], [1.0, 1.0])
