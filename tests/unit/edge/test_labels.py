"""Labels are what the plan's loss takes, or they are refused before anything is computed."""

import numpy as np
import pytest

from edge_client.errors import ContractViolation, ExampleMismatch
from edge_client.labels import labels_for
from edge_client.linear_trainer import LinearTrainer, linear_weights
from edge_client.training import ArrayExamples, TrainingJob, check_examples, check_tokens
from wire_protocol.errors import MalformedMessage
from wire_protocol.messages import RoundKind
from wire_protocol.plan import TrainingPlan, decode_plan, encode_plan

SPARSE, ONE_HOT = "sparse_categorical_crossentropy", "categorical_crossentropy"
BINARY, SQUARED = "binary_crossentropy", "mean_squared_error"


def plan(loss, num_classes, **fields):
    weights = linear_weights(input_shape=(2,), num_classes=num_classes)
    return TrainingPlan(
        batch_size=2, learning_rate=0.1, input_shape=(2,), num_classes=num_classes, weights=weights, loss=loss, **fields
    )


def examples(labels):
    labels = np.asarray(labels)
    return ArrayExamples(x=np.ones((len(labels), 2), np.float32), y=labels)


@pytest.mark.parametrize(
    ("loss", "num_classes", "labels", "expected"),
    [
        (SPARSE, 3, [0, 2], np.array([0, 2], np.int32)),
        (ONE_HOT, 2, [[0.0, 1.0], [0.25, 0.75]], np.array([[0, 1], [0.25, 0.75]], np.float32)),
        (BINARY, 1, [0, 1], np.array([[0], [1]], np.float32)),
        (BINARY, 2, [[0, 1], [1, 1]], np.array([[0, 1], [1, 1]], np.float32)),
        (SQUARED, 1, [7, 3], np.array([[7], [3]], np.float32)),
        (SQUARED, 1, [-7.5, 3], np.array([[-7.5], [3]], np.float32)),
        ("huber", 2, [[-1.0, 2.0]], np.array([[-1, 2]], np.float32)),
    ],
)
def test_labels_that_fit_reach_the_model_in_the_plans_shape_and_dtype(loss, num_classes, labels, expected):
    wanted, given = plan(loss, num_classes), examples(labels)
    check_examples(wanted, given)
    converted = labels_for(wanted, given.labels)
    np.testing.assert_array_equal(converted, expected)
    assert converted.dtype == expected.dtype == wanted.label_dtype
    assert converted.shape[1:] == wanted.label_shape


@pytest.mark.parametrize(
    ("loss", "num_classes", "labels", "words"),
    [
        (SPARSE, 3, [0, 3], "run from 0 to 3"),
        (SPARSE, 3, [0.0, 1.0], "takes class numbers"),
        (ONE_HOT, 3, [0, 1], "are class numbers; the model takes 3 numbers"),
        (ONE_HOT, 3, [[0.0, 1.0]], "are 2 numbers; the model takes 3"),
        (ONE_HOT, 2, [[0.5, 0.4]], "does not sum to 1"),
        (ONE_HOT, 2, [[-0.5, 1.5]], "takes 0 to 1"),
        (BINARY, 1, [0, 2], "run from 0 to 2"),
        (BINARY, 1, [[0.0, 1.0]], "are 2 numbers"),
        (SQUARED, 2, [1.0, 2.0], "are 1 numbers"),
        (SQUARED, 1, [1.0, np.nan], "NaN or infinite"),
        (SQUARED, 1, [1.0, np.inf], "NaN or infinite"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_what_the_model_takes(loss, num_classes, labels, words):
    with pytest.raises(ExampleMismatch, match=words):
        check_examples(plan(loss, num_classes), examples(labels))


def test_the_linear_trainer_refuses_every_other_loss_by_name():
    weights = tuple(np.zeros(spec.shape, np.float32) for spec in plan(SQUARED, 1).weights)
    job = TrainingJob(
        kind=RoundKind.TRAIN, plan=plan(SQUARED, 1), model=b"", checkpoint=weights, round_id=1, device_id="d"
    )
    with pytest.raises(ContractViolation, match="not the loss mean_squared_error"):
        LinearTrainer().train(job, examples([1.0, 2.0]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"loss": SPARSE, "num_classes": 1}, "num_classes of at least 2"),
        ({"loss": ONE_HOT, "num_classes": 1}, "num_classes of at least 2"),
        ({"loss": SQUARED, "num_classes": 1, "huber_delta": 2.0}, "huber_delta belongs to huber"),
        ({"loss": SQUARED, "num_classes": 1, "num_statistics": 2}, "nothing trains"),
    ],
)
def test_a_plan_whose_loss_does_not_fit_is_not_made(fields, words):
    with pytest.raises(ValueError, match=words):
        plan(**fields)


def test_a_plan_of_a_regression_is_read_back_and_a_delta_of_zero_is_not():
    wanted = plan("huber", 1, huber_delta=0.5)
    assert decode_plan(encode_plan(wanted)) == wanted
    with pytest.raises(MalformedMessage, match="huber_delta"):
        decode_plan(encode_plan(wanted).replace(b'"huber_delta":0.5', b'"huber_delta":0.0'))


def test_token_numbers_are_whole_and_below_the_plans_number_and_other_plans_take_any():
    wanted = plan(SPARSE, 3, num_tokens=4)
    check_tokens(wanted, np.array([[0, 3]], np.float32))
    for wrong in (-1.0, 4.0, 2.5, np.nan, np.inf):
        x = np.array([[0, wrong]], np.float32)
        with pytest.raises(ExampleMismatch, match="whole from 0 to 3"):
            check_tokens(wanted, x)
        check_tokens(plan(SPARSE, 3), x)


def test_a_plan_of_more_tokens_than_float32_tells_apart_is_not_read():
    assert decode_plan(encode_plan(plan(SPARSE, 3, num_tokens=2**24))).num_tokens == 2**24
    with pytest.raises(MalformedMessage, match="num_tokens"):
        decode_plan(encode_plan(plan(SPARSE, 3, num_tokens=2**24 + 1)))
