"""int8 files with constant scales: equal to the formula, close to float32, and refused when the data do not fit."""

import json

import numpy as np
import pytest
import torch

import miniclip
from miniclip.cli import main
from miniclip.data.shapes import Shapes
from miniclip.data.subset import Subset
from miniclip.deployment.quantization import calibration, check
from miniclip.deployment.quantization.attention import RUNTIME, write_fused
from miniclip.deployment.quantization.calibration import draw_samples, pixel_batches, token_batches
from miniclip.deployment.quantization.constant import find_products
from miniclip.deployment.quantization.editing import Index
from miniclip.deployment.quantization.graph import quantize_file
from miniclip.deployment.towers import sample_pixels, sample_tokens
from miniclip.deployment.verification import session
from miniclip.errors import CheckpointError
from miniclip.fast.calibrated import channel_steps, one_step
from miniclip.fast.int8 import quantize_weight

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def write_mlp(path, **weights):
    """Write an ONNX file of a norm and an MLP with QuickGELU of factor 1: (batch, tokens, D) to the same."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    D = len(weights["gain"])
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "offset"], ["n"], axis=-1, epsilon=1e-5),
        helper.make_node("MatMul", ["n", "up"], ["u"]),
        helper.make_node("Add", ["u", "up_bias"], ["ub"]),
        helper.make_node("Sigmoid", ["ub"], ["s"]),
        helper.make_node("Mul", ["ub", "s"], ["h"]),
        helper.make_node("MatMul", ["h", "down"], ["d"]),
        helper.make_node("Add", ["down_bias", "d"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", D]) for name in "xy"]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "mlp", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))


def test_products_equal_the_formula(tmp_path):
    generator = np.random.default_rng(0)
    D, K = 12, 20
    sizes = {"gain": D, "offset": D, "up": (D, K), "up_bias": K, "down": (K, D), "down_bias": D}
    weights = {name: generator.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    weights["gain"][3] = 40  # an outlier
    write_mlp(tmp_path / "exact.onnx", **weights)
    x = generator.normal(size=(3, 7, D)).astype(np.float32)
    batches = [{"x": x[:1]}, {"x": x[1:]}]
    assert quantize_file(tmp_path / "exact.onnx", tmp_path / "int8.onnx", iter(batches)) == 2
    tensors = {name: torch.from_numpy(value).double() for name, value in weights.items()}

    def linear(inputs, name, steps):
        """Product in integers, of inputs that calibrated it."""
        integers = ((inputs - steps.center) / steps.step).round() + steps.zero_point
        values, scale = quantize_weight((tensors[name].T * steps.step).float())
        bias = tensors[f"{name}_bias"] + steps.center.double() @ tensors[name]
        return (integers.clamp(0, 255) - steps.zero_point).double() @ values.T.double() * scale + bias

    norm = torch.nn.functional.layer_norm(torch.from_numpy(x).double(), (D,), tensors["gain"], tensors["offset"])
    inputs = channel_steps(norm.flatten(0, 1).float().aminmax(dim=0), tensors["up"].T.float())
    exact = norm @ tensors["up"] + tensors["up_bias"]
    hidden = one_step((exact * exact.sigmoid()).flatten(0, 1).float().aminmax(dim=0))
    up = linear(norm, "up", inputs)
    expected = linear(up * up.sigmoid(), "down", hidden)
    result = session(tmp_path / "int8.onnx").run(None, {"x": x})[0]
    close = np.isclose(result, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert close.mean() > 0.9  # others differ by an integer that was rounded the other way
    assert np.abs(result - expected.numpy()).max() < 0.02 * np.abs(expected.numpy()).max()


def cosines(path, exact, inputs):
    rows, expected = (session(file).run(None, inputs)[0] for file in (path, exact))
    return (rows * expected).sum(-1) / np.linalg.norm(rows, axis=-1) / np.linalg.norm(expected, axis=-1)


def test_towers_are_close_to_float32(model, towers, models, exported, tmp_path):
    import onnx

    causal, siglip = models["onnx"].config, models["immich"].config
    tokens = sample_tokens(causal, 32).numpy()
    cases = {
        # queries of the last block and its attention's result are of one token, and have a scale for it
        "class token": (towers / "visual.onnx", 2, False, {"image": sample_pixels(model.config, 8).numpy()}, 3, 2),
        "causal": (exported("onnx") / "textual.onnx", 2, True, {"text": tokens}, 7, 2),
        "attention": (
            exported("immich") / "visual" / "model.onnx", 2, False,
            {"image": sample_pixels(siglip, 8).numpy()}, 4, None,
        ),
    }  # fmt: skip
    for name, (source, heads, is_causal, inputs, constant, dynamic) in cases.items():
        fused, target = tmp_path / f"{name}.onnx", tmp_path / f"{name}_int8.onnx"
        write_fused(source, fused, heads, is_causal, inputs)
        graph = onnx.load(fused).graph
        assert len(find_products(graph, Index(graph))) == constant, name
        count = quantize_file(fused, target, [inputs])
        kinds = [node.op_type for node in onnx.load(target).graph.node]
        assert kinds.count("QuantizeLinear") == kinds.count("MatMulIntegerToFloat") == count, name
        if dynamic is not None:
            assert kinds.count("ReduceMax") - [n.op_type for n in graph.node].count("ReduceMax") == dynamic, name
        assert cosines(target, source, inputs).min() > 0.998, name
    assert RUNTIME in {opset.domain for opset in onnx.load(target).opset_import}


def test_captions_are_grouped_without_their_padding(model):
    data = Shapes("val", 40, image_size=16)
    samples = draw_samples(data)
    texts = [caption for group in data.captions for caption in group]
    assert samples.texts == texts
    assert len(samples.images) == 40
    rows = [row for batch in token_batches(model, samples.texts) for row in batch["text"]]
    assert sorted(map(tuple, rows)) == sorted(tuple(model.tokenizer([text])[0].tolist()) for text in texts)
    assert sum(len(batch["image"]) for batch in pixel_batches(model, samples.images)) == 40


def test_few_images_are_drawn_from_large_data(monkeypatch):
    monkeypatch.setattr(calibration, "MAX_IMAGES", 3)
    data = Shapes("val", 8, image_size=16)
    samples = draw_samples(data)
    assert [data.captions[index] for index in (0, 2, 5)] == samples.images.data.captions
    assert samples.texts == [caption for index in (0, 2, 5) for caption in data.captions[index]]


def test_command_calibrates_and_names_the_data(model, val_data, tmp_path, capsys, traced):
    miniclip.save(model, tmp_path / "model")
    rows = ["image,caption"]
    for number, (image, captions) in enumerate(val_data):
        image.save(tmp_path / f"{number}.png")
        rows += [f'{number}.png,"{caption}"' for caption in captions]
    (tmp_path / "photos.csv").write_text("\n".join(rows))
    options = ["--int8", "--calibration-data", f"{tmp_path / 'photos.csv'}:all"]
    with pytest.warns(UserWarning, match="float32 on the calibration data: .*Recall was not checked"):
        main(["export", str(tmp_path / "model"), str(tmp_path / "out"), *options])
    assert "int8: smallest cosine with float32 on the calibration data: image " in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "int8_check.json").read_text())
    assert report["cosine_on"] == "the calibration data"
    assert min(report["cosine"].values()) > 0.99
    images = [image for image, _ in val_data]
    pixels = torch.stack([model.preprocess(image) for image in images]).numpy()
    rows = session(tmp_path / "out" / "visual_int8.onnx").run(None, {"image": pixels})[0]
    assert float((torch.from_numpy(rows) * model.encode_image(images)).sum(1).min()) == pytest.approx(
        report["cosine"]["image"], abs=1e-5
    )


def test_data_that_do_not_fit_leave_nothing(model, val_data, tmp_path, monkeypatch, traced):
    def export(**options):
        miniclip.export(model, tmp_path / "out", layout="onnx", **options)

    with pytest.raises(ValueError, match="calibration_data are for int8"):
        export(calibration_data=val_data)
    with pytest.raises(ValueError, match="calibration data are empty"):
        export(int8=True, calibration_data=Subset(val_data, []))
    monkeypatch.setattr(check, "MIN_COSINE", 1.1)
    with pytest.raises(CheckpointError, match=r"on the calibration data; .* Export without calibration data"):
        export(int8=True, calibration_data=val_data)
    monkeypatch.setattr(model, "tokenizer", None)
    with pytest.raises(ValueError, match="neither checked nor calibrated"):
        export(int8=True, calibration_data=val_data)
    assert not (tmp_path / "out").exists()


def test_activations_that_are_not_finite_are_refused(tmp_path):
    weights = {"gain": (4,), "offset": (4,), "up": (4, 8), "up_bias": (8,), "down": (8, 4), "down_bias": (4,)}
    write_mlp(tmp_path / "exact.onnx", **{name: np.ones(size, np.float32) for name, size in weights.items()})
    x = np.full((1, 2, 4), np.nan, np.float32)
    with pytest.raises(ValueError, match="NaN or infinite on the calibration data"):
        quantize_file(tmp_path / "exact.onnx", tmp_path / "int8.onnx", [{"x": x}])
    with pytest.raises(ValueError, match="calibration data are empty"):
        quantize_file(tmp_path / "exact.onnx", tmp_path / "int8.onnx", [])
    assert not (tmp_path / "int8.onnx").exists()
