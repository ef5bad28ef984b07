"""A text model from token numbers: exported, trained on a device, simulated, and refused where it cannot work."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from edge_client.errors import ExampleMismatch
from edge_client.litert_trainer import LiteRtTrainer
from edge_client.training import ArrayExamples, TrainingJob
from model_export.check_batches import draw_batch
from model_export.errors import ParityRefused, UnsupportedLayer
from model_export.exporter import build_export
from model_export.keras_graph import read_graph
from model_export.lite_model import LiteModel
from model_export.lowering import layers as lowered_layers
from model_export.lowering.embedding import embed
from model_export.simulated_model import SimulatedModel
from wire_protocol.messages import RoundKind
from wire_protocol.tensors import decode_tensors

pytestmark = pytest.mark.tensorflow

layers = tf.keras.layers

# Lewis Carroll, "Jabberwocky", 1871.
TEXT = """twas brillig, and the slithy toves did gyre and gimble in the wabe: all mimsy were the borogoves,
and the mome raths outgrabe. beware the jabberwock, my son! the jaws that bite, the claws that catch!
beware the jubjub bird, and shun the frumious bandersnatch! he took his vorpal sword in hand; long time
the manxome foe he sought so rested he by the tumtum tree and stood awhile in thought."""
ALPHABET = sorted(set(TEXT))
CONTEXT = 6
PLAN = {"batch_size": 16, "learning_rate": 0.01, "optimizer": "adam", "num_epochs": 12, "seed": 1}


def next_characters():
    """[n, 6] numbers of characters, and [n] that of the next one."""
    numbers = np.array([ALPHABET.index(character) for character in TEXT])
    x = np.lib.stride_tricks.sliding_window_view(numbers[:-1], CONTEXT).astype(np.float32)
    return x, numbers[CONTEXT:].astype(np.int32)


def text_model(dtype=tf.float32, embedding=None):
    tf.keras.utils.set_random_seed(3)
    x = inputs = tf.keras.Input((CONTEXT,), dtype=dtype)
    x = (embedding or layers.Embedding(len(ALPHABET), 8))(x)
    x = layers.Dense(32, activation="relu")(layers.Flatten()(x))
    return tf.keras.Model(inputs, layers.Dense(len(ALPHABET))(x))


@pytest.fixture(scope="module")
def text_export():
    return build_export(text_model(), **PLAN)


def job_of(export, **changes):
    return TrainingJob(
        kind=RoundKind.TRAIN,
        plan=export.plan,
        model=export.bundle.model,
        checkpoint=decode_tensors(export.bundle.checkpoint, export.plan.weights),
        round_id=1,
        device_id="d1",
        **changes,
    )


def test_a_device_learns_the_next_character_of_a_text(text_export):
    assert text_export.plan.num_tokens == len(ALPHABET)
    job, trainer, (x, y) = job_of(text_export), LiteRtTrainer(), next_characters()
    examples = ArrayExamples(x=x, y=y)
    delta = trainer.train(job, examples).model_delta
    trained = tuple(weight + change for weight, change in zip(job.checkpoint, delta, strict=True))
    before = trainer.evaluate(job, examples).metrics
    after = trainer.evaluate(dataclasses.replace(job, checkpoint=trained), examples).metrics
    assert before.num_correct / len(y) < 0.2
    assert after.num_correct / len(y) > 0.8
    # The alphabet is the text's own: every row of the table was met.
    assert np.abs(delta[0]).max(1).min() > 0


@pytest.mark.parametrize("wrong", [-1.0, len(ALPHABET), 0.5, np.nan, np.inf])
def test_a_number_that_is_no_token_is_refused_in_the_batch_that_holds_it(text_export, wrong):
    x, y = next_characters()
    x[200, 3] = wrong
    with pytest.raises(ExampleMismatch, match=f"whole from 0 to {len(ALPHABET) - 1}"):
        LiteRtTrainer().train(job_of(text_export), ArrayExamples(x=x, y=y))


def test_a_wrong_number_reads_the_ends_of_the_table_and_no_other_memory(text_export):
    file = LiteModel(text_export.bundle.model)
    file.restore(decode_tensors(text_export.bundle.checkpoint, text_export.plan.weights))
    last = float(len(ALPHABET) - 1)
    x = np.zeros((16, CONTEXT), np.float32)
    x[0] = last
    wild = x.copy()
    wild[0], wild[1] = 3e38, -3e38
    np.testing.assert_array_equal(file.infer(wild), file.infer(x))


def test_a_simulation_takes_the_step_of_the_file_and_its_table_has_a_dense_gradient():
    plan = {"batch_size": 16, "learning_rate": 0.1}
    simulated, file = SimulatedModel(text_model(), **plan), LiteModel(build_export(text_model(), **plan).bundle.model)
    batch = draw_batch("random", read_graph(text_model()), 16, np.random.default_rng(0))
    weights = simulated.initial_weights()
    file.restore(weights)
    file.train(batch, 0.1)
    watched = [tf.constant(weight) for weight in weights]
    with tf.GradientTape() as tape:
        tape.watch(watched)
        losses = simulated.example_loss(simulated.predict(watched, batch.x, None, training=True), batch.labels)
        loss = tf.reduce_mean(losses)
    for after, before, gradient in zip(file.save(), weights, tape.gradient(loss, watched), strict=True):
        assert not isinstance(gradient, tf.IndexedSlices)
        np.testing.assert_allclose(after, before - 0.1 * gradient, rtol=0, atol=1e-6)


def test_an_input_of_integers_is_the_same_model():
    assert read_graph(text_model(tf.int32)).nodes == read_graph(text_model()).nodes
    result = build_export(text_model(tf.int32), batch_size=4, learning_rate=0.1)
    assert result.certificate.max_gradient_error <= 1e-5


def test_a_table_gradient_that_forgets_repeated_tokens_is_refused(monkeypatch):
    def last_one_wins(x, table):
        y, _ = embed(x, table)
        rows = tf.one_hot(tf.cast(tf.reshape(x, [-1]), tf.int32), table.shape[0], axis=0)
        counts = tf.maximum(tf.reduce_sum(rows, 1, keepdims=True), 1.0)
        return y, lambda dy: tf.matmul(rows, tf.reshape(dy, [-1, table.shape[1]])) / counts

    monkeypatch.setattr(lowered_layers, "embed", last_one_wins)
    with pytest.raises(ParityRefused, match="gradient off"):
        build_export(text_model(), batch_size=4, learning_rate=0.1)


def embedding_second():
    inputs = tf.keras.Input((CONTEXT,))
    x = layers.Flatten()(layers.Embedding(5, 3)(layers.ReLU()(inputs)))
    return tf.keras.Model(inputs, layers.Dense(3)(x))


def tokens_as_numbers():
    inputs = tf.keras.Input((CONTEXT,))
    x = layers.Flatten()(layers.Embedding(5, 3)(inputs))
    return tf.keras.Model(inputs, layers.Add()([layers.Dense(3)(x), layers.Dense(3, name="raw")(inputs)]))


@pytest.mark.parametrize(
    ("build", "advice"),
    [
        (lambda: text_model(embedding=layers.Embedding(9, 3, mask_zero=True)), "mask_zero=False"),
        (embedding_second, "Make Embedding the first layer"),
        (tokens_as_numbers, "'raw' .*Put an Embedding layer before it"),
        (lambda: text_model(embedding=layers.Embedding(9, 3, embeddings_regularizer="l2")), "not part of the training"),
    ],
    ids=["masks", "not first", "tokens as numbers", "regularizer"],
)
def test_an_embedding_that_cannot_be_exported_is_refused_with_what_to_use(build, advice):
    with pytest.raises(UnsupportedLayer, match=advice):
        read_graph(build())
