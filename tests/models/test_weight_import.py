"""Tests of published weights in our networks: small stored files, and real networks if their libraries are installed.

The stored files, `pretrained_*.safetensors`, are torchvision's networks with width 2 and random weights, made by
`python -m tests.models.test_weight_import` (needs torch and torchvision). The logits are in their metadata.
"""

import hashlib
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

from pneumojax.config import ModelConfig, config_from_dict
from pneumojax.errors import UserError
from pneumojax.models import MODELS
from pneumojax.models.weight_import import load_pretrained
from pneumojax.optimizer import make_optimizer
from pneumojax.preprocessing import PIXEL_MEAN, PIXEL_STD, normalise, scale_pixels
from pneumojax.sharding import make_mesh
from pneumojax.steps import init_state
from pneumojax.training.fit import fit
from pneumojax.training.initial_weights import load_initial_weights
from pneumojax.training.plan import make_plan

HERE = pathlib.Path(__file__).parent
STORED = {
    "resnet50": {"resnet_width": 2},
    "vgg16": {"vgg_width": 2, "vgg_dense_widths": (8, 6)},
}
IMAGENET_MEAN, IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def make_images(size, number=2):
    return np.random.default_rng(0).integers(0, 256, (number, size, size), np.uint8)


def make_fresh(config, image_px, num_outputs):
    """Makes a network with any number of outputs, and its fresh variables."""
    common = {"num_outputs": num_outputs, "dropout": 0.0, "dtype": "float32", "axis_name": None}
    model = nnx.eval_shape(lambda: MODELS[config.model](config, image_px, rngs=nnx.Rngs(0), **common))
    rng = np.random.default_rng(1)
    parts = nnx.split_state(nnx.state(model), nnx.Param, nnx.BatchStat)
    params, batch_stats = (
        jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), nnx.to_pure_dict(part)) for part in parts
    )
    return nnx.graphdef(model), {"params": params, "batch_stats": batch_stats}


def compute_logits(path, config, images, num_outputs):
    """Computes our logits for uint8 images, with the weights of a file."""
    graph, fresh = make_fresh(config, images.shape[1], num_outputs)
    variables = load_pretrained(path, config, fresh, PIXEL_MEAN, PIXEL_STD)

    @jax.jit
    def predict(variables, images):
        model = nnx.merge(graph, variables["params"], variables["batch_stats"])
        return model(normalise(scale_pixels(images)), train=False)

    return np.asarray(predict(variables, images))


def assert_same_logits(ours, theirs):
    np.testing.assert_array_less(np.abs(ours - theirs).max(), 1e-4 * np.abs(theirs).max())


def colour(images):
    """Converts grey images to the input of torchvision's networks: [B, 3, H, W] float32, normalised."""
    x = images[:, None].astype(np.float32) / 255
    return ((x - IMAGENET_MEAN[:, None, None]) / IMAGENET_STD[:, None, None]).astype(np.float32)


def stored(name):
    return HERE / f"pretrained_{name}.safetensors"


@pytest.mark.parametrize("name", list(STORED))
def test_a_stored_network_gives_its_stored_logits(name):
    with safetensors.safe_open(stored(name), "numpy") as file:
        expected = np.array(json.loads(file.metadata()["logits"]))
    config = ModelConfig(model=name, pretrained="file", **STORED[name])
    assert_same_logits(compute_logits(stored(name), config, make_images(48), 5), expected)


def save(path, tensors):
    safetensors.numpy.save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    return path


def load(path, name="resnet50", image_px=48, num_outputs=5, **fields):
    config = ModelConfig(model=name, pretrained=str(path), **{**STORED.get(name, {}), **fields})
    _, fresh = make_fresh(config, image_px, num_outputs)
    return fresh, load_pretrained(path, config, fresh, PIXEL_MEAN, PIXEL_STD)


def test_a_classifier_of_another_shape_starts_fresh_from_its_first_layer_that_differs():
    fresh, loaded = load(stored("vgg16"), "vgg16", num_outputs=1)
    np.testing.assert_array_equal(
        loaded["params"]["head"]["linear"]["kernel"], fresh["params"]["head"]["linear"]["kernel"]
    )
    assert np.abs(loaded["params"]["dense2"]["kernel"] - fresh["params"]["dense2"]["kernel"]).max() > 0.1
    fresh, loaded = load(stored("vgg16"), "vgg16", vgg_dense_widths=(7, 6))
    for layer in ("dense1", "dense2", "head"):
        for ours, theirs in zip(*map(jax.tree.leaves, (loaded["params"][layer], fresh["params"][layer])), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert np.abs(loaded["params"]["stage1_conv1"]["kernel"] - fresh["params"]["stage1_conv1"]["kernel"]).max() > 0.1
    _, loaded = load(stored("vgg16"), "vgg16", vgg_dense_widths=())
    assert "dense1" not in loaded["params"]


def test_a_file_without_a_classifier_is_taken(tmp_path):
    tensors = safetensors.numpy.load_file(stored("resnet50"))
    path = save(tmp_path / "a.safetensors", {k: v for k, v in tensors.items() if not k.startswith("fc.")})
    fresh, loaded = load(path)
    np.testing.assert_array_equal(loaded["params"]["head"]["linear"]["bias"], fresh["params"]["head"]["linear"]["bias"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda t: t | {"layer1.0.conv4.weight": t.pop("layer1.0.conv3.weight")},
            r"lacks layer1\.0\.conv3\.weight \(nearest: layer1\.0\.conv4\.weight\), and has in addition "
            r"layer1\.0\.conv4\.weight \(nearest: layer1\.0\.conv3\.weight\)",
        ),
        (lambda t: {k: t[k] for k in t if "layer4" not in k}, r"lacks layer4\.0\.\S+ \(nearest: \S+\) and \d+ more\."),
        (lambda t: t | {"extra.weight": t["bn1.bias"]}, r"has in addition extra\.weight"),
        (
            lambda t: t | {"conv1.weight": t["conv1.weight"][..., :5]},
            r"conv1\.weight has shape 7x5x2x2 .* needs 7x7x2x2",
        ),
        (lambda t: t | {"bn1.bias": np.full(2, np.nan, np.float32)}, r"bn1\.bias holds numbers that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_named_with_the_nearest_match(tmp_path, change, sentence):
    path = save(tmp_path / "a.safetensors", change(safetensors.numpy.load_file(stored("resnet50"))))
    with pytest.raises(UserError, match=sentence):
        load(path)


def test_another_architecture_is_recognised():
    with pytest.raises(
        UserError, match=r"not a resnet18 of torchvision or timm: .* It looks like resnet50: give --model=resnet50"
    ):
        load(stored("resnet50"), "resnet18", resnet_width=2)
    with pytest.raises(UserError, match="It looks like vgg16: give --model=vgg16"):
        load(stored("vgg16"), "resnet50")
    with pytest.raises(UserError, match="has shape 2 in our layout, but this resnet50 needs 4"):
        load(stored("resnet50"), resnet_width=4)


def test_a_stride_in_another_place_is_refused():
    with pytest.raises(
        UserError,
        match="of torchvision or timm, the stride of a block is in the 3x3 convolution: give --resnet_stride=3x3",
    ):
        load(stored("resnet50"), resnet_stride="1x1")


def test_networks_without_published_weights_are_refused():
    with pytest.raises(UserError, match="pretrained needs model=cnn, vgg16, resnet18, resnet34, resnet50, not mlp"):
        config_from_dict({"pretrained": "file", "model": "mlp"})


def test_published_weights_do_not_fit_a_cnn():
    with pytest.raises(
        UserError, match="has weights of torchvision or timm. The network cnn can only use backbones of"
    ):
        load(stored("vgg16"), "cnn")


@pytest.mark.slow
def test_training_starts_from_the_file_and_goes_on_without_it(make_config, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(stored("vgg16").read_bytes())
    fields = {"model": "vgg16", "vgg_width": 2, "vgg_dense_widths": (), "pretrained": str(path), "epochs": 1}
    config = make_config(**fields)
    mesh = make_mesh()
    [state] = load_initial_weights(make_plan(config), [init_state(config, make_optimizer(config.optimizer, 1), mesh)])
    _, loaded = load(path, "vgg16", vgg_dense_widths=())
    for variables in (state.ema, {"params": state.params, "batch_stats": state.batch_stats}):
        np.testing.assert_array_equal(
            variables["params"]["stage3_conv2"]["kernel"], loaded["params"]["stage3_conv2"]["kernel"]
        )
    assert fit(config, tmp_path / "run").step > 0
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["pretrained_sha256"]
    assert kept == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(stored("resnet50").read_bytes())
    with pytest.raises(UserError, match=rf"the content of \S+weights\.safetensors was {kept}, is [0-9a-f]{{64}}"):
        fit(config, tmp_path / "run")
    path.unlink()
    assert fit(config, tmp_path / "run").threshold is not None
    with pytest.raises(UserError, match="there is no file"):
        fit(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def randomise(network, torch):
    """Sets random statistics and biases. With the initial zeros and ones, swapped tensors would not be detected."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
        elif getattr(module, "bias", None) is not None:
            module.bias.data.normal_(0, 0.1)
    return network.eval()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("library", "name", "size"),
    [
        ("torchvision", "resnet18", 65),
        ("torchvision", "resnet50", 64),
        ("timm", "resnet34", 64),
        ("timm", "resnet50", 97),
        ("torchvision", "vgg16", 224),
        ("timm", "vgg16", 64),
    ],
)
def test_torch_networks_give_the_same_logits(tmp_path, library, name, size, suffix):
    torch = pytest.importorskip("torch")
    module = pytest.importorskip(library)
    if (suffix == ".pth") == (library == "torchvision"):
        pytest.skip("each architecture through one kind of file")
    torch.manual_seed(0)
    network = randomise(module.models.get_model(name) if library == "torchvision" else module.create_model(name), torch)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        save(path, {key: tensor.numpy() for key, tensor in network.state_dict().items()})
    images = make_images(size)
    with torch.no_grad():
        expected = network(torch.from_numpy(colour(images))).numpy()
    assert_same_logits(compute_logits(path, ModelConfig(model=name, pretrained=str(path)), images, 1000), expected)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("VGG16", ".h5"), ("VGG16", ".weights.h5"), ("ResNet50", ".keras"), ("ResNet50", ".h5")],
)
def test_keras_networks_give_the_same_logits(tmp_path, monkeypatch, name, suffix):
    pytest.importorskip("torch")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    network = getattr(keras.applications, name)(weights=None)
    rng = np.random.default_rng(0)
    for layer in network.layers:
        weights = layer.get_weights()
        if len(weights) == 4:
            layer.set_weights(
                [rng.uniform(0.5, 1.5, w.shape) * (1 if i in (0, 3) else 0.2) for i, w in enumerate(weights)]
            )
        elif weights:
            layer.set_weights([weights[0], rng.normal(0, 0.1, weights[1].shape)])
    network.layers[-1].activation = keras.activations.linear
    path = tmp_path / f"network{suffix}"
    network.save_weights(path) if suffix == ".weights.h5" else network.save(path)
    images = make_images(224)
    bgr = np.repeat(images[..., None].astype(np.float32), 3, -1) - np.float32([103.939, 116.779, 123.68])
    expected = np.asarray(network.predict(bgr, verbose=0))
    config = ModelConfig(model=name.lower(), resnet_stride="1x1", pretrained=str(path))
    assert_same_logits(compute_logits(path, config, images, 1000), expected)
    if name == "ResNet50":
        with pytest.raises(UserError, match="ResNet50 of Keras, the stride of a block is in the 1x1 convolution"):
            load_pretrained(path, ModelConfig(model="resnet50"), {}, PIXEL_MEAN, PIXEL_STD)


def make_stored(name):
    """Makes torchvision's network with width 2 and five outputs. Returns (weights, logits of `make_images(48)`)."""
    import torch
    import torchvision

    class Narrow(torchvision.models.ResNet):
        def _make_layer(self, block, planes, *args, **options):
            self.inplanes = 2 if planes == 64 else self.inplanes
            return super()._make_layer(block, planes // 32, *args, **options)

    torch.manual_seed(0)
    if name == "resnet50":
        network = Narrow(torchvision.models.resnet.Bottleneck, [3, 4, 6, 3], num_classes=5)
        network.conv1, network.bn1 = torch.nn.Conv2d(3, 2, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(2)
        network.fc = torch.nn.Linear(64, 5)
    else:
        widths = [w if w == "M" else w // 32 for w in torchvision.models.vgg.cfgs["D"]]
        network = torchvision.models.VGG(torchvision.models.vgg.make_layers(widths), num_classes=5)
        for position, layer in ((0, (16 * 49, 8)), (3, (8, 6)), (6, (6, 5))):
            network.classifier[position] = torch.nn.Linear(*layer)
    # Half precision on disk: the logits are those of the rounded weights.
    network = randomise(network, torch).half().float()
    with torch.no_grad():
        logits = network(torch.from_numpy(colour(make_images(48)))).numpy()
    return {key: tensor.numpy() for key, tensor in network.state_dict().items()}, logits


if __name__ == "__main__":
    for name in STORED:
        tensors, logits = make_stored(name)
        halves = {key: tensor.astype(np.float16) for key, tensor in tensors.items() if tensor.ndim}
        safetensors.numpy.save_file(halves, stored(name), {"logits": json.dumps(logits.tolist())})
