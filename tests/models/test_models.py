import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pneumojax.config import ModelConfig
from pneumojax.models import MODELS, make_model
from pneumojax.models.layers import Head
from pneumojax.models.resnet import Block, ResNet

PX = 16
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 6)
TINY = ModelConfig(mlp_widths=(8, 4), cnn_widths=(4, 6), resnet_width=4)
# ResNet-34 has the class and the blocks of ResNet-18, and takes seconds to trace.
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name == "resnet34" else name for name in MODELS]
EVERY_MODEL = pytest.mark.parametrize("name", NAMES)


def tiny(**changes):
    return dataclasses.replace(TINY, **changes)


@functools.cache
def make_abstract(config, image_px=PX):
    """Makes a network with shapes and dtypes only, without compilation."""
    return nnx.eval_shape(lambda: make_model(config, image_px, KEY))


def make(config, seed=0):
    graph = nnx.graphdef(make_abstract(config))
    state = jax.jit(lambda key: nnx.state(make_model(config, PX, key)))(jax.random.key(seed))
    return graph, state


def random_images(number):
    return np.random.default_rng(0).normal(size=(number, PX, PX, 1)).astype(np.float32)


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def apply_abstract(config, batch=3):
    """Returns the shapes of the logits and the state after one call in training mode."""
    model = make_abstract(config)

    def call(state, images, keys):
        merged = nnx.merge(nnx.graphdef(model), state)
        return merged(images, True, keys), nnx.state(merged)

    images = jax.ShapeDtypeStruct((batch, PX, PX, 1), jnp.float32)
    return jax.eval_shape(call, nnx.state(model), images, KEYS[:batch])


DEEP = ("resnet34", "resnet50")


@pytest.mark.parametrize(
    ("name", "task", "dtype"),
    [
        # The deeper ones have the same class as ResNet-18, and take seconds to trace.
        *((name, "three_class", "bfloat16") for name in MODELS if name not in DEEP),
        *(pytest.param(name, "three_class", "bfloat16", marks=pytest.mark.slow) for name in DEEP),
        *((name, "binary", "float32") for name in MODELS if name not in DEEP),
    ],
)
def test_logits_are_float32_one_or_three_and_the_state_keeps_its_shapes_and_float32(name, task, dtype):
    config = tiny(model=name, task=task, dtype=dtype, dropout=0.5)
    logits, state = apply_abstract(config)
    assert logits.shape == (3, 1 if task == "binary" else 3)
    assert logits.dtype == jnp.float32
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), nnx.state(make_abstract(config)))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == shapes
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}


@EVERY_MODEL
def test_the_compute_type_reaches_the_large_products(name):
    model = make_abstract(tiny(model=name, dtype="bfloat16"))
    images = jax.ShapeDtypeStruct((2, PX, PX, 1), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda state, x: nnx.merge(nnx.graphdef(model), state)(x, False))(nnx.state(model), images)

    def find_products(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                yield equation.outvars[0].aval
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from find_products(inner)

    *body, head = find_products(jaxpr.jaxpr)
    assert body
    assert {product.dtype for product in body} == {jnp.dtype("bfloat16")}
    assert head.dtype == jnp.float32


# Parameters of torchvision's networks (its documentation), whose stem sees 3 colours and whose head has 1,000 outputs.
@pytest.mark.parametrize(
    ("name", "published", "features"),
    [
        ("resnet18", 11_689_512, 512),
        pytest.param("resnet34", 21_797_672, 512, marks=pytest.mark.slow),
        ("resnet50", 25_557_032, 2048),
    ],
)
def test_residual_networks_have_torchvisions_number_of_parameters(name, published, features):
    colours = 2 * 7 * 7 * 64
    head = 1000 * (features + 1)
    model = make_abstract(ModelConfig(model=name), 224)
    assert count(model) == published - colours - head + (features + 1)
    # Mean and variance of each normalised channel, whose scale and bias are parameters.
    scales = sum(leaf.size for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)) if path[-1] == "scale")
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.BatchStat))) == 2 * scales


def test_small_networks_have_the_parameters_of_their_widths():
    mlp = make_abstract(tiny(model="mlp"))
    assert count(mlp) == (PX * PX + 1) * 8 + (8 + 1) * 4 + (4 + 1)
    cnn = make_abstract(tiny(model="cnn", task="three_class"))
    assert count(cnn) == 9 * 4 + 2 * 4 + 9 * 4 * 6 + 2 * 6 + (6 + 1) * 3


@pytest.mark.parametrize(("stem", "size", "factor"), [("imagenet", 7, 4), ("strided", 3, 2), ("small", 3, 1)])
@pytest.mark.parametrize(("name", "stages"), [("resnet9", 8), ("resnet18", 8)])
def test_a_stem_shrinks_the_image_as_it_says(name, stages, stem, size, factor):
    model = make_model(tiny(model=name, resnet_stem=stem), 64, jax.random.key(0))
    assert model.stem_conv.kernel[...].shape == (size, size, 1, 4)
    jaxpr = jax.make_jaxpr(lambda images: model.extract(images, False))(jnp.zeros((2, 64, 64, 1)))
    means = [eqn.invars[0].aval.shape for eqn in jaxpr.eqns if eqn.primitive.name == "reduce_sum"]
    assert means[-1] == (2, 64 // factor // stages, 64 // factor // stages, 32)


@EVERY_MODEL
def test_states_are_dicts_with_string_keys_in_two_collections(name):
    model = make_abstract(tiny(model=name, dropout=0.5))
    for path, _ in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model))):
        assert all(isinstance(entry, jax.tree_util.DictKey) and isinstance(entry.key, str) for entry in path)
    # The network has no state that a checkpoint does not store, such as random state or a counter.
    both = jax.tree.leaves(nnx.state(model, nnx.Param)) + jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert len(jax.tree.leaves(nnx.state(model))) == len(both)


@pytest.mark.parametrize(("bottleneck", "train"), [(False, True), (True, False)])
def test_a_fresh_residual_block_passes_its_input_on(bottleneck, train):
    @jax.jit
    def call(x):
        block = Block(8, 2 if bottleneck else 8, 1, bottleneck, "float32", None, nnx.Rngs(KEY))
        return block(x, train)

    x = np.random.default_rng(0).normal(size=(2, 5, 6, 8)).astype(np.float32)
    np.testing.assert_array_equal(call(x), np.maximum(x, 0))


@pytest.mark.parametrize("bottleneck", [False, True])
def test_the_stride_of_a_block_is_in_its_first_3x3_convolution(bottleneck):
    block = nnx.eval_shape(lambda: Block(8, 4, 2, bottleneck, "float32", None, nnx.Rngs(KEY)))
    convolutions = [getattr(block, f"conv{i + 1}") for i in range(block.depth)]
    strided = [conv.kernel.shape[0] for conv in convolutions if conv.stride == 2]
    assert strided == [3]
    assert convolutions[1 if bottleneck else 0].stride == block.shortcut_conv.stride == 2


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet18"])
def test_prediction_of_an_image_does_not_depend_on_its_batch_and_changes_nothing(name, monkeypatch):
    # Two of the four stages are enough for this test, and compile faster.
    monkeypatch.setitem(MODELS, "resnet18", lambda config, px, **common: ResNet((1, 1), False, 4, **common))
    graph, state = make(tiny(model=name, dropout=0.125))  # not used in other tests, because `make_abstract` has a cache

    @jax.jit
    def predict(state, images):
        model = nnx.merge(graph, state)
        return model(images, False), nnx.state(model)

    images = random_images(6)
    logits, after = predict(state, images)
    assert np.ptp(logits) > 1e-3
    order = np.array([4, 0, 4, 4, 4, 4])  # The same number of images, because another number would be compiled again.
    np.testing.assert_allclose(predict(state, images[order])[0], np.asarray(logits)[order], atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_training_normalises_with_the_batch_and_remembers_a_tenth_of_it():
    graph, state = make(tiny(model="cnn"))
    images = 3 + random_images(6)

    @jax.jit
    def train(state, images):
        model = nnx.merge(graph, state)
        return model.conv1(images), model(images, True), nnx.state(model, nnx.BatchStat)

    features, logits, stats = jax.tree.map(np.asarray, train(state, images))
    np.testing.assert_allclose(stats["norm1"]["mean"][...], 0.1 * features.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["norm1"]["var"][...], 0.9 + 0.1 * features.var((0, 1, 2)), rtol=1e-4)
    # In training, the normalisation removes a change of scale, and thereby of exposure.
    np.testing.assert_allclose(train(state, 2 * images)[1], logits, rtol=1e-2, atol=1e-3)


def test_initialisation_is_a_function_of_the_seed():
    config = tiny(model="cnn")
    (_, one), (_, same), (_, other) = make(config), make(config), make(config, seed=1)
    jax.tree.map(np.testing.assert_array_equal, one, same)
    kernels = [
        path for path, _ in nnx.to_flat_state(nnx.state(make_abstract(config), nnx.Param)) if path[-1] == "kernel"
    ]
    for path in kernels:
        values = [functools.reduce(lambda node, part: node[part], path, state)[...] for state in (one, other)]
        assert np.abs(values[0] - values[1]).max() > 1e-3


def test_convolutions_start_with_the_variance_that_keeps_gradients():
    config = tiny(model="cnn", cnn_widths=(64,))
    kernel = make(config)[1]["conv1"]["kernel"][...]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (3 * 3 * 64)), rtol=0.1)


@functools.cache
def make_head(dropout):
    """A head that returns its features as logits."""
    head = Head(8, 8, dropout, nnx.Rngs(KEY))
    head.linear.kernel[...] = jnp.eye(8)
    return head


def test_dropout_drops_its_share_and_keeps_the_mean():
    keys = jax.random.split(KEY, 2000)
    features = make_head(0.25)(jnp.ones((2000, 8)), True, keys)
    np.testing.assert_allclose(np.unique(features), [0, 1 / 0.75], rtol=1e-6)
    assert abs(features.mean() - 1) < 0.02
    assert len(np.unique(features, axis=0)) > 100


def test_a_dropout_mask_depends_on_the_images_key_only():
    features = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    head = make_head(0.5)
    together = np.asarray(head(features, True, KEYS))
    order = np.array([5, 1, 1, 0, 3, 2])
    np.testing.assert_array_equal(head(features[order], True, KEYS[order]), together[order])
    assert (head(features, True, KEYS[order]) != together).any()


def test_dropout_is_off_in_prediction_and_at_a_share_of_0():
    features = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    np.testing.assert_array_equal(make_head(0.5)(features, False, None), features)
    np.testing.assert_array_equal(make_head(0.0)(features, True, None), features)
