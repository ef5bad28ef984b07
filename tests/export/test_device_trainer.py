"""The device's LiteRT trainer on really exported files: the same numbers as numpy, and nothing run unchecked."""

import dataclasses
import threading

import numpy as np
import pytest

from edge_client.errors import ContractViolation, ExampleMismatch, NonFiniteUpdate, TooFewExamples
from edge_client.events import TrainingFinished
from edge_client.example_store import write_examples
from edge_client.linear_trainer import LinearTrainer
from edge_client.litert_trainer import LiteRtTrainer
from edge_client.trainer_options import TrainerOptions
from edge_client.trainer_process import TrainerProcess
from edge_client.training import ArrayExamples, TrainingJob
from wire_protocol.messages import RoundKind
from wire_protocol.model_contract import BUNDLE_CHECKPOINT, BUNDLE_MODEL, BUNDLE_PLAN
from wire_protocol.plan import TensorSpec, decode_plan
from wire_protocol.tensors import decode_tensors

pytestmark = pytest.mark.tensorflow

# 70 examples in batches of 16: the last batch of every epoch has six, and is padded with ten.
NUM_EXAMPLES, BATCH_SIZE = 70, 16


def _examples(shape, *, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((NUM_EXAMPLES, *shape)).astype(np.float32)
    return ArrayExamples(x=x, y=rng.integers(0, 10, NUM_EXAMPLES).astype(np.int32))


def _job(bundle, kind=RoundKind.TRAIN):
    plan = decode_plan((bundle / BUNDLE_PLAN).read_bytes())
    return TrainingJob(
        kind=kind,
        plan=plan,
        model=(bundle / BUNDLE_MODEL).read_bytes(),
        checkpoint=decode_tensors((bundle / BUNDLE_CHECKPOINT).read_bytes(), plan.weights),
        round_id=4,
        device_id="d1",
    )


@pytest.fixture(scope="module")
def linear_bundle(tmp_path_factory):
    """Softmax regression with momentum: what the numpy trainer can do too."""
    import tensorflow as tf

    from model_export.exporter import export_model

    tf.keras.utils.set_random_seed(1)
    model = tf.keras.Sequential([tf.keras.layers.InputLayer((12,)), tf.keras.layers.Dense(10)])
    out_dir = tmp_path_factory.mktemp("linear") / "bundle"
    export_model(model, out_dir=out_dir, batch_size=BATCH_SIZE, learning_rate=0.3, momentum=0.9, num_epochs=2)
    return out_dir


@pytest.fixture(scope="module")
def dropout_bundle(tmp_path_factory):
    import tensorflow as tf

    from model_export.exporter import export_model

    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(2)
    model = tf.keras.Sequential(
        [
            layers.InputLayer((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Dense(10),
        ]
    )
    out_dir = tmp_path_factory.mktemp("dropout") / "bundle"
    export_model(model, out_dir=out_dir, batch_size=BATCH_SIZE, learning_rate=0.1)
    return out_dir


def _assert_close(found, expected):
    for delta, wanted in zip(found.model_delta, expected.model_delta, strict=True):
        assert np.abs(wanted).max() > 1e-2
        np.testing.assert_allclose(delta, wanted, atol=2e-6)


def _assert_same_sums(found, expected):
    assert found.num_examples == expected.num_examples == NUM_EXAMPLES
    assert found.aggregation_weight == expected.aggregation_weight
    assert found.metrics.weight_sum == expected.metrics.weight_sum
    assert found.metrics.num_correct == expected.metrics.num_correct
    assert found.metrics.loss_sum == pytest.approx(expected.metrics.loss_sum, rel=1e-5)


def test_litert_and_numpy_train_the_same_model_to_the_same_weights(linear_bundle):
    job, examples = _job(linear_bundle), _examples((12,))
    found, expected = LiteRtTrainer().train(job, examples), LinearTrainer().train(job, examples)
    _assert_close(found, expected)
    _assert_same_sums(found, expected)
    assert found.aggregation_weight == 2 * NUM_EXAMPLES


def test_litert_and_numpy_evaluate_the_same_model_alike(linear_bundle):
    job, examples = _job(linear_bundle, RoundKind.EVALUATE), _examples((12,))
    found, expected = LiteRtTrainer().evaluate(job, examples), LinearTrainer().evaluate(job, examples)
    assert found.model_delta is expected.model_delta is None
    _assert_same_sums(found, expected)


def test_a_second_round_on_the_same_loaded_file_starts_from_its_own_checkpoint_and_no_momentum(linear_bundle):
    trainer, examples = LiteRtTrainer(), _examples((12,))
    first = _job(linear_bundle)
    trainer.train(first, examples)
    checkpoint = tuple(tensor + np.float32(0.1) for tensor in first.checkpoint)
    second = dataclasses.replace(first, checkpoint=checkpoint, round_id=5)
    _assert_close(trainer.train(second, examples), LinearTrainer().train(second, examples))


def test_the_same_job_gives_the_same_bits_also_with_dropout(dropout_bundle):
    job, examples = _job(dropout_bundle), _examples((8, 8, 1))
    assert job.plan.has_dropout
    first, second = LiteRtTrainer().train(job, examples), LiteRtTrainer().train(job, examples)
    for a, b in zip(first.model_delta, second.model_delta, strict=True):
        np.testing.assert_array_equal(a, b)
    other = LiteRtTrainer().train(dataclasses.replace(job, round_id=5), examples)
    assert any(not np.array_equal(a, b) for a, b in zip(first.model_delta, other.model_delta, strict=True))


def test_training_lowers_the_loss_that_evaluation_finds(dropout_bundle):
    job, examples, trainer = _job(dropout_bundle), _examples((8, 8, 1)), LiteRtTrainer()
    before = trainer.evaluate(job, examples).metrics.loss_sum
    weights = job.checkpoint
    for round_id in range(1, 6):
        step = dataclasses.replace(job, checkpoint=weights, round_id=round_id)
        delta = trainer.train(step, examples).model_delta
        weights = tuple(weight + change for weight, change in zip(weights, delta, strict=True))
    after = trainer.evaluate(dataclasses.replace(job, checkpoint=weights), examples).metrics.loss_sum
    assert after < before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 8}, "x is ((16, 12)"),
        ({"input_shape": (3, 4)}, "the plan says ((16, 3, 4)"),
        ({"has_dropout": True}, "dropout_ticket"),
        ({"weights": (TensorSpec(shape=(12, 10)), TensorSpec(shape=(11,)))}, "w1"),
        ({"weights": (TensorSpec(shape=(12, 10)),)}, "w1 is none that the plan knows"),
        ({"weights": tuple(TensorSpec(shape=s) for s in ((12, 10), (10,), (3,)))}, "w2 is None"),
    ],
)
def test_a_file_that_is_not_what_its_plan_says_is_refused_before_it_runs(linear_bundle, changes, words):
    job = _job(linear_bundle)
    fields = {name: getattr(job.plan, name) for name in job.plan.__struct_fields__} | changes
    plan = type(job.plan)(**fields)
    weights = tuple(np.zeros(spec.shape, np.float32) for spec in plan.weights)
    wrong = dataclasses.replace(job, plan=plan, checkpoint=weights)
    with pytest.raises(ContractViolation) as caught:
        LiteRtTrainer().train(wrong, _examples((12,)))
    assert words in str(caught.value)


@pytest.mark.parametrize("model", [b"", b"not a model", b"\0" * 1000])
def test_bytes_that_are_no_model_are_refused(linear_bundle, model):
    job = dataclasses.replace(_job(linear_bundle), model=model)
    with pytest.raises(ContractViolation, match="cannot load"):
        LiteRtTrainer().train(job, _examples((12,)))


def test_a_truncated_model_file_is_refused_or_costs_the_child_alone(linear_bundle, tmp_path):
    examples = _examples((12,))
    write_examples(tmp_path / "data", x=examples.inputs(np.arange(NUM_EXAMPLES)), y=examples.labels)
    job = _job(linear_bundle)
    woken = threading.Event()
    trainer = TrainerProcess(
        options=TrainerOptions(data_path=str(tmp_path / "data")), time_limit_s=120, idle_stop_s=120, wake=woken.set
    )
    trainer.start(dataclasses.replace(job, model=job.model[: len(job.model) // 2]))
    assert woken.wait(120)
    woken.clear()
    assert not isinstance(trainer.poll(), TrainingFinished)
    trainer.start(job)
    assert woken.wait(120)
    ended = trainer.poll()
    assert isinstance(ended, TrainingFinished)
    _assert_close(ended.result, LinearTrainer().train(job, examples))
    trainer.close()


def test_examples_that_do_not_fit_are_refused(linear_bundle):
    job = _job(linear_bundle)
    with pytest.raises(ExampleMismatch):
        LiteRtTrainer().train(job, _examples((13,)))
    fields = {name: getattr(job.plan, name) for name in job.plan.__struct_fields__} | {"min_examples": 71}
    with pytest.raises(TooFewExamples):
        LiteRtTrainer().train(dataclasses.replace(job, plan=type(job.plan)(**fields)), _examples((12,)))


def test_a_diverging_training_is_refused(linear_bundle):
    job = _job(linear_bundle)
    fields = {name: getattr(job.plan, name) for name in job.plan.__struct_fields__} | {"learning_rate": 3e38}
    with pytest.raises(NonFiniteUpdate):
        LiteRtTrainer().train(dataclasses.replace(job, plan=type(job.plan)(**fields)), _examples((12,)))
