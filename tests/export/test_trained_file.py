"""What an exported file does in LiteRT, against Keras."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from model_export.check_batches import CheckBatch
from model_export.exporter import build_export
from model_export.file_ops import count_ops
from model_export.lite_model import LiteModel
from model_export.zoo import digits_cnn, digits_mlp
from wire_protocol.local_order import local_steps
from wire_protocol.model_contract import DROPOUT_TICKET, SIGNATURES, TRAIN
from wire_protocol.tensors import decode_tensors

pytestmark = pytest.mark.tensorflow


def random_batch(plan, rng, num_examples=None) -> CheckBatch:
    size = plan.batch_size
    return CheckBatch(
        x=rng.random((size, *plan.input_shape)).astype("f"),
        labels=rng.integers(0, plan.num_classes, size).astype("i"),
        tickets=rng.integers(0, 2**31, size).astype("i"),
        num_examples=size if num_examples is None else num_examples,
    )


def initial(export):
    return decode_tensors(export.bundle.checkpoint, export.plan.weights)


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_op_of_every_model_is_a_builtin(any_export):
    counts = count_ops(any_export.bundle.model)
    assert counts == any_export.certificate.op_counts
    assert not any("FLEX" in name.upper() or "CUSTOM" in name for name in counts)
    assert "CALL_ONCE" not in counts


def test_no_op_that_xnnpack_refuses_with_variable_weights_is_in_any_model(any_export):
    refused = {"CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "ADD_N", "SELECT", "SELECT_V2", "BROADCAST_TO"}
    assert refused.isdisjoint(any_export.certificate.op_counts)


def test_every_input_of_every_signature_has_rank_one_or_more(any_export):
    ranks = LiteModel(any_export.bundle.model).input_ranks()
    assert set(ranks) == set(SIGNATURES)
    assert all(rank >= 1 for inputs in ranks.values() for rank in inputs.values())
    assert (DROPOUT_TICKET in ranks[TRAIN]) == any_export.plan.has_dropout


def test_the_file_holds_no_initial_weights(any_export):
    for weight in initial(any_export):
        flat = weight.ravel()
        if not flat.any():
            continue  # zeros are anywhere
        for stored in (weight, weight.T):
            probe = np.ascontiguousarray(stored).tobytes()[:64]
            assert probe not in any_export.bundle.model


def test_the_file_of_a_large_model_is_a_fraction_of_its_weights(mnist_export):
    assert len(mnist_export.bundle.model) < 250_000 < mnist_export.plan.update_bytes // 10


def test_what_restore_sets_save_gives_back_bit_for_bit(any_export, rng):
    model = LiteModel(any_export.bundle.model)
    weights = tuple(rng.standard_normal(spec.shape).astype("f") for spec in any_export.plan.weights)
    model.restore(weights)
    assert_same(model.save(), weights)


def test_restore_resets_the_momentum_slots(mlp_export, mlp_file, rng):
    weights, batch = initial(mlp_export), random_batch(mlp_export.plan, rng)
    mlp_file.restore(weights)
    mlp_file.train(batch, 0.1)
    after_one = mlp_file.save()
    mlp_file.train(batch, 0.1)
    assert any((a != b).any() for a, b in zip(mlp_file.save(), after_one, strict=True))
    mlp_file.restore(weights)
    mlp_file.train(batch, 0.1)
    assert_same(mlp_file.save(), after_one)


def test_momentum_steps_are_those_of_the_keras_optimizer(mlp_export, mlp_file, rng):
    model = digits_mlp()
    optimizer = tf.keras.optimizers.SGD(0.05, momentum=0.9)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    mlp_file.restore(initial(mlp_export))
    for _ in range(4):
        batch = random_batch(mlp_export.plan, rng)
        mlp_file.train(batch, 0.05)
        with tf.GradientTape() as tape:
            value = loss(batch.labels, model(batch.x))
        optimizer.apply_gradients(
            zip(tape.gradient(value, model.trainable_weights), model.trainable_weights, strict=True)
        )
    for got, expected in zip(mlp_file.save(), model.get_weights(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_a_partial_batch_takes_the_step_that_keras_takes_on_the_short_batch(cnn_export, rng):
    batch = random_batch(cnn_export.plan, rng, num_examples=5)
    file = LiteModel(cnn_export.bundle.model)
    file.restore(initial(cnn_export))
    loss_sum, _, weight_sum = file.train(batch, 0.05)
    model = digits_cnn()
    model.compile(
        tf.keras.optimizers.SGD(0.05),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    keras_loss = model.train_on_batch(batch.x[:5], batch.labels[:5])
    assert weight_sum == 5
    assert loss_sum / 5 == pytest.approx(keras_loss, rel=1e-6)
    for got, expected in zip(file.save(), model.get_weights(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_what_the_padding_holds_changes_no_bit(cnn_export, rng):
    batch = random_batch(cnn_export.plan, rng, num_examples=5)
    x, labels = batch.x.copy(), batch.labels.copy()
    x[5:], labels[5:] = 0, 0
    file = LiteModel(cnn_export.bundle.model)
    outcomes = []
    for padded in (batch, dataclasses.replace(batch, x=x, labels=labels)):
        file.restore(initial(cnn_export))
        outcomes.append((file.evaluate(padded), file.train(padded, 0.05), file.save()))
    assert outcomes[0][:2] == outcomes[1][:2]
    assert_same(outcomes[0][2], outcomes[1][2])


def test_a_batch_of_one_example_can_be_exported():
    certificate = build_export(digits_mlp(), batch_size=1, learning_rate=0.05).certificate
    assert [case.num_examples for case in certificate.cases] == [1, 1, 1, 1]


def test_a_batch_of_padding_alone_leaves_the_weights_of_plain_sgd(cnn_export, rng):
    file = LiteModel(cnn_export.bundle.model)
    file.restore(initial(cnn_export))
    assert file.train(random_batch(cnn_export.plan, rng, num_examples=0), 0.05) == (0.0, 0.0, 0.0)
    assert_same(file.save(), initial(cnn_export))


def test_train_reports_the_figures_of_before_its_step(cnn_export, rng):
    file = LiteModel(cnn_export.bundle.model)
    file.restore(initial(cnn_export))
    batch = random_batch(cnn_export.plan, rng)
    before = file.evaluate(batch)
    assert file.train(batch, 0.05) == before
    assert file.evaluate(batch) != before


def test_other_tickets_drop_other_values_and_the_same_tickets_the_same(mnist_export, rng):
    file = LiteModel(mnist_export.bundle.model)
    batch = random_batch(mnist_export.plan, rng)
    losses = []
    for tickets in (batch.tickets, batch.tickets, batch.tickets + 1):
        file.restore(initial(mnist_export))
        losses.append(file.train(dataclasses.replace(batch, tickets=tickets), 0.05))
    assert losses[0] == losses[1] != losses[2]


def test_infer_gives_probabilities_for_a_model_that_ends_in_softmax(mixed_export, rng):
    file = LiteModel(mixed_export.bundle.model)
    file.restore(initial(mixed_export))
    output = file.infer(random_batch(mixed_export.plan, rng).x)
    np.testing.assert_allclose(output.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("export_name", ["mlp_export", "cnn_export"])
def test_a_digits_model_trained_in_litert_reaches_95_percent(export_name, request):
    export = request.getfixturevalue(export_name)
    plan, file = export.plan, LiteModel(export.bundle.model)
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = (digits.data[order] / 16).astype("f").reshape(-1, *plan.input_shape)
    labels = digits.target[order].astype("i")
    num_train = 1400
    file.restore(initial(export))
    for epoch in range(12):
        for step in local_steps(plan, num_examples=num_train, round_id=epoch, device_id="one"):
            file.train(padded(x, labels, step.indices, plan.batch_size), 0.02)
    num_correct = sum(
        file.evaluate(padded(x, labels, np.arange(start, min(start + plan.batch_size, len(x))), plan.batch_size))[1]
        for start in range(num_train, len(x), plan.batch_size)
    )
    assert num_correct / (len(x) - num_train) >= 0.95


def padded(x, labels, indices, batch_size) -> CheckBatch:
    filled = np.resize(indices, batch_size)
    return CheckBatch(
        x=x[filled], labels=labels[filled], tickets=np.zeros(batch_size, np.int32), num_examples=len(indices)
    )
