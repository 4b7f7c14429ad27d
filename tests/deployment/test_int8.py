"""int8 files: close to float32, checked on data, refused when broken, and equal to the formula."""

import json

import numpy as np
import pytest
import torch

import miniclip
from miniclip.cli import main
from miniclip.deployment.layouts import bare
from miniclip.deployment.quantization import check, encoder
from miniclip.deployment.quantization.attention import RUNTIME, fuse_attention, write_fused
from miniclip.deployment.quantization.encoder import OnnxEncoder
from miniclip.deployment.quantization.graph import quantize_file
from miniclip.deployment.towers import sample_images, sample_tokens
from miniclip.deployment.verification import session
from miniclip.errors import CheckpointError
from miniclip.evaluation import ShapeClasses, retrieval, zero_shot
from miniclip.fast.int8 import quantize_weight
from tests.toys import make_model

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def write_linear(path, weight, axes=("tokens",)):
    """Write an ONNX file with one product of x (..., K) and a weight (K, N)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    dims = [*axes, weight.shape[0]]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*axes, weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))


def test_product_equals_the_formula(tmp_path):
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(19, 7)).astype(np.float32)
    write_linear(tmp_path / "exact.onnx", weight, ("batch", "tokens"))
    assert quantize_file(tmp_path / "exact.onnx", tmp_path / "int8.onnx") == 1
    x = generator.normal(size=(2, 5, 19)).astype(np.float32) * np.logspace(-3, 3, 5, dtype=np.float32)[:, None]
    x[0, 0] = 0
    values, scale = quantize_weight(torch.from_numpy(weight.T.copy()))
    limit = np.abs(x).max(-1, keepdims=True).clip(1e-30)
    tokens = np.rint(x / (limit / 127))
    expected = (tokens @ values.numpy().T.astype(np.float64)) * (limit / 127) * scale.numpy()
    result = session(tmp_path / "int8.onnx").run(None, {"x": x})[0]
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


def test_file_without_constant_products_is_refused(tmp_path):
    import onnx

    write_linear(tmp_path / "exact.onnx", np.ones((2, 2), np.float32))
    model = onnx.load(tmp_path / "exact.onnx")
    model.graph.node[0].op_type = "Add"
    onnx.save(model, tmp_path / "exact.onnx")
    with pytest.raises(ValueError, match="no product with constant weights"):
        quantize_file(tmp_path / "exact.onnx", tmp_path / "int8.onnx")


@pytest.mark.parametrize(("name", "count"), [("visual", 2), ("textual", 1)])  # the last text block has one query
def test_attention_of_onnxruntime_is_exact(name, count, models, exported, tmp_path):
    import onnx

    exact, fused, config = exported("onnx") / f"{name}.onnx", tmp_path / "fused.onnx", models["onnx"].config
    file = onnx.load(exact)
    nodes = len(file.graph.node)
    assert fuse_attention(file.graph, 2, causal=name == "visual") == 0  # the mask is another one
    assert len(file.graph.node) == nodes
    assert fuse_attention(file.graph, 2, causal=name == "textual") == count
    assert len(file.graph.node) < nodes
    file.opset_import.append(onnx.helper.make_opsetid(RUNTIME, 1))
    onnx.save(file, fused)
    for batch in (1, 3):
        inputs = {"text": sample_tokens(config, batch).numpy()}
        if name == "visual":
            inputs = {"image": sample_images(config, batch)}
        expected, found = (session(path).run(None, inputs)[0] for path in (exact, fused))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_attention_that_gives_other_embeddings_is_refused(exported, models, tmp_path):
    inputs = {"text": sample_tokens(models["onnx"].config, 3).numpy()}
    exact = exported("onnx") / "textual.onnx"
    write_fused(exact, tmp_path / "fused.onnx", 2, True, inputs)
    with pytest.raises(CheckpointError, match=r"wrong\.onnx differs by .*the limit is 1e-05"):
        write_fused(exact, tmp_path / "wrong.onnx", 1, True, inputs)


def test_command_checks_data_and_prints_figures(model, val_data, tmp_path, capsys, traced, monkeypatch):
    monkeypatch.setattr(check, "MAX_LOSS", 20.0)  # an untrained model's ranks are near ties
    miniclip.save(model, tmp_path / "model")
    rows = ["image,caption"]
    for number, (image, captions) in enumerate(val_data):
        image.save(tmp_path / f"{number}.png")
        rows.append(f'{number}.png,"{captions[0]}"')
    (tmp_path / "photos.csv").write_text("\n".join(rows))
    options = ["--int8", "--check-data", str(tmp_path / "photos.csv"), "--check-classes", "shapes:color"]
    main(["export", str(tmp_path / "model"), str(tmp_path / "out"), *options])
    out = capsys.readouterr().out
    assert "smallest cosine with float32 on noise: image 0.9" in out
    assert "float32 to int8: image to text R@1" in out
    assert "float32 to int8: zero-shot top-1" in out
    report = json.loads((tmp_path / "out" / "int8_check.json").read_text())
    assert min(report["cosine"].values()) > 0.99
    int8 = OnnxEncoder(model, *(tmp_path / "out" / f"{name}_int8.onnx" for name in ("visual", "textual")))
    for inputs, encode in ((torch.randn(3, 3, 16, 16), "encode_image"), (["a dog", "a red circle"], "encode_text")):
        cosines = (getattr(int8, encode)(inputs) * getattr(model, encode)(inputs)).sum(1)
        assert float(cosines.min()) > 0.99


def test_broken_int8_leaves_nothing(model, val_data, tmp_path, monkeypatch, traced):
    classes = ShapeClasses("color", "test", image_size=16)
    for measure, data in (("_recalls", {"check_data": val_data}), ("_accuracies", {"check_classes": classes})):
        for value, refused in ((49.5, False), (49.4, True)):
            monkeypatch.setattr(check, measure, lambda encoders, data, v=value: [{"R@1": 50.0}, {"R@1": v}])
            if refused:
                with pytest.raises(CheckpointError, match=r"R@1 falls from 50.0 to 49.4 %"):
                    miniclip.export(model, tmp_path / "out", layout="onnx", int8=True, **data)
                assert not (tmp_path / "out").exists()
            else:
                miniclip.export(model, tmp_path / measure, layout="onnx", int8=True, **data)
    monkeypatch.setattr(check, "MIN_COSINE", 1.1)
    with pytest.raises(CheckpointError, match="image tower was checked and refused"):
        miniclip.export(model, tmp_path / "out", layout="onnx", int8=True)
    assert not (tmp_path / "out").exists()


def test_figures_are_those_of_the_evaluation_and_images_are_decoded_once(model, val_data, towers, monkeypatch):
    encoders = [OnnxEncoder(model, towers / "visual.onnx", towers / "textual.onnx")] * 2
    reads = []
    read = encoder.ImageReader._read
    monkeypatch.setattr(encoder.ImageReader, "_read", lambda self, index: reads.append(index) or read(self, index))
    expected = {
        f"{way.replace('_', ' ')} {k}": value
        for way, values in retrieval(model, val_data).items()
        for k, value in values.items()
    }
    reads.clear()
    assert check._recalls(encoders, val_data) == [expected, expected]
    assert sorted(reads) == list(range(len(val_data)))
    classes = ShapeClasses("color", "test", image_size=16)
    top1 = {"zero-shot top-1": zero_shot(model, classes)["top1"]}
    assert check._accuracies(encoders, classes) == [top1, top1]


def test_data_without_a_tokenizer_are_refused_before_the_export(tokenizer, val_data, tmp_path, monkeypatch):
    monkeypatch.setattr(bare, "write_image_encoder", None)  # would fail
    bare_model = make_model(tokenizer)
    bare_model.tokenizer = None
    with pytest.raises(ValueError, match="has no tokenizer, so int8 can be neither checked nor"):
        miniclip.export(bare_model, tmp_path / "out", layout="onnx", int8=True, check_data=val_data)
    assert not (tmp_path / "out").exists()


def test_without_data_recall_is_not_checked(model, tmp_path, traced):
    with pytest.warns(UserWarning, match="Recall was not checked"):
        miniclip.export(model, tmp_path / "out", layout="onnx", int8=True)
    assert json.loads((tmp_path / "out" / "int8_check.json").read_text())["recall"] is None


@pytest.mark.parametrize(
    "options",
    [
        {"int8": True, "preprocessing": True},
        {"int8": True, "precision": "float16"},
        {"check_data": [1]},
        {"check_classes": [1]},
    ],
)
def test_options_that_do_not_go_together_are_refused(model, tmp_path, options):
    with pytest.raises(ValueError, match="int8"):
        miniclip.export(model, tmp_path / "out", layout="onnx", **options)
