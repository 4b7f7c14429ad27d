"""Each layout holds the files and names of its application, whose own reader opens it if it is installed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from miniclip.deployment.towers import sample_pixels, sample_tokens
from tests.deployment.conftest import CAPTIONS, LAYOUTS, output_of, run, tool, unit

onnxruntime = pytest.importorskip("onnxruntime")

HERE = Path(__file__).parent
RCLIP = "ViT-B-32-256-datacomp_s34b_b86k"
FILES = {
    "onnx": {"visual.onnx", "textual.onnx", "config.json", "preprocess_cfg.json", "tokenizer.json"},
    "immich": {
        "visual/model.onnx", "visual/preprocess_cfg.json", "textual/model.onnx", "textual/tokenizer.json",
        "textual/tokenizer_config.json", "config.json",
    },
    "transformers.js": {
        *(f"onnx/{tower}_model{end}.onnx" for tower in ("vision", "text") for end in ("", "_quantized", "_q4")),
        "config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    },
    "optimum": {"model.onnx", "config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"},
    "rclip": {f"{RCLIP}/visual.onnx", f"{RCLIP}/textual.onnx", "tokenizer/bpe_simple_vocab_16e6.txt.gz"},
}  # fmt: skip
FLOAT, INT64, INT32 = "tensor(float)", "tensor(int64)", "tensor(int32)"
SIGNATURES = {  # layout: file, inputs, first outputs
    "onnx": [
        ("visual.onnx", [("image", "tensor(uint8)", ["batch", "height", "width", 3])], [("embedding", ["batch", 16])]),
        ("textual.onnx", [("text", INT64, ["batch", "length"])], [("embedding", ["batch", 16])]),
    ],
    "immich": [
        ("visual/model.onnx", [("image", FLOAT, ["batch", 3, 16, 16])], [("embedding", ["batch", 16])]),
        ("textual/model.onnx", [("text", INT32, ["batch", 12])], [("embedding", ["batch", 16])]),
    ],
    "transformers.js": [
        ("onnx/vision_model.onnx", [("pixel_values", FLOAT, ["batch", 3, 16, 16])], [("image_embeds", ["batch", 16])]),
        (
            "onnx/text_model.onnx",
            [("input_ids", INT64, ["batch", "length"]), ("attention_mask", INT64, ["batch", "length"])],
            [("text_embeds", ["batch", 16])],
        ),
    ],
    "optimum": [
        (
            "model.onnx",
            [
                ("input_ids", INT64, ["texts", "length"]),
                ("pixel_values", FLOAT, ["images", 3, 16, 16]),
                ("attention_mask", INT64, ["texts", "length"]),
            ],
            [
                ("logits_per_image", ["images", "texts"]),
                ("logits_per_text", ["texts", "images"]),
                ("text_embeds", ["texts", 16]),
                ("image_embeds", ["images", 16]),
            ],
        )
    ],
    "rclip": [
        (f"{RCLIP}/visual.onnx", [("input", FLOAT, ["batch", 3, 256, 256])], [("output", ["batch", 512])]),
        (f"{RCLIP}/textual.onnx", [("input", INT64, ["batch", 77])], [("output", ["batch", 512])]),
    ],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_and_signatures(layout, exported):
    import onnx

    folder = exported(layout)
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == FILES[layout]
    for name, inputs, outputs in SIGNATURES[layout]:
        session = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        assert [(value.name, value.type, value.shape) for value in session.get_inputs()] == inputs
        assert [(value.name, value.shape) for value in session.get_outputs()] == outputs
        assert {value.type for value in session.get_outputs()} == {FLOAT}
        model = onnx.load(folder / name)
        assert ("", 18) in [(item.domain, item.version) for item in model.opset_import]
        assert model.producer_name == "miniclip"


def test_onnx_states_what_it_holds(exported):
    config = json.loads((exported("onnx") / "config.json").read_text())
    assert (config["format"], config["opset"], config["precision"]) == ("miniclip onnx", 18, "float32")
    assert json.loads((exported("onnx") / "preprocess_cfg.json").read_text())["inside"] is True


def immich_pixels(image, settings):
    """immich's `OpenClipVisualEncoder.transform`, stated again: resize, crop, scale, normalise."""
    size = settings["size"][0]
    assert settings["resize_mode"] == "shortest"
    ratio = max(image.width, image.height) / min(image.width, image.height)
    sides = (size, int(ratio * size)) if image.width < image.height else (int(ratio * size), size)
    image = image.resize(sides, Image.Resampling[settings["interpolation"].upper()])
    left, top = (int(side / 2 - size / 2) for side in sides)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
    return ((pixels - np.float32(settings["mean"])) / np.float32(settings["std"])).transpose(2, 0, 1)[None]


def test_immich_contract(models, exported):
    tokenizers = pytest.importorskip("tokenizers")
    model, folder = models["immich"], exported("immich")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    pixels = immich_pixels(image, json.loads((folder / "visual" / "preprocess_cfg.json").read_text()))
    (embedding,) = run(folder / "visual" / "model.onnx", image=pixels.astype(np.float32))
    np.testing.assert_allclose(embedding, model.encode_image(image), rtol=0, atol=1e-5)
    context = json.loads((folder / "config.json").read_text())["text_cfg"]["context_length"]
    pad_token = json.loads((folder / "textual" / "tokenizer_config.json").read_text())["pad_token"]
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "textual" / "tokenizer.json"))
    tokenizer.enable_padding(length=context, pad_token=pad_token, pad_id=tokenizer.token_to_id(pad_token))
    tokenizer.enable_truncation(max_length=context)
    for caption in CAPTIONS:
        ids = np.array([tokenizer.encode(" ".join(caption.split())).ids], np.int32)
        assert ids.shape == (1, 12)
        (embedding,) = run(folder / "textual" / "model.onnx", text=ids)
        np.testing.assert_allclose(embedding, model.encode_text([caption]), rtol=0, atol=1e-5)


def test_optimum_contract(models, exported):
    """Ids that the attention mask excludes have no effect."""
    model, file = models["optimum"], exported("optimum") / "model.onnx"
    pixels, tokens = sample_pixels(model.config, 3), sample_tokens(model.config, 2, length=7)
    tokens[0, :5], tokens[1] = torch.tensor([538, 70, 71, 539, 72]), torch.tensor([538, 70, 71, 72, 73, 74, 539])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1] * 7])
    inputs = {"input_ids": tokens.numpy(), "pixel_values": pixels.numpy(), "attention_mask": mask.numpy()}
    per_image, per_text, texts, images = run(file, **inputs)
    np.testing.assert_allclose(images, model.encode_image(pixels), rtol=0, atol=1e-5)
    np.testing.assert_allclose(texts, model.encode_text(tokens), rtol=0, atol=1e-5)
    scale = float(model.log_scale.detach().exp())
    np.testing.assert_allclose(per_image, images @ texts.T * scale, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(per_text, per_image.T, rtol=1e-6)


@pytest.mark.peer
def test_optimum_opens_the_folder(models, exported):
    python, model = tool("MINICLIP_OPTIMUM_PYTHON"), models["optimum"]
    pixels = sample_pixels(model.config, 2)
    arguments = [json.dumps(CAPTIONS), json.dumps({"shape": pixels.shape, "data": pixels.flatten().tolist()})]
    result = output_of([python, HERE / "read_with_optimum.py", exported("optimum"), *arguments])
    expected = model.encode_image(pixels) @ model.encode_text(CAPTIONS).T * model.log_scale.detach().exp()
    np.testing.assert_allclose(result["logits"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.peer
def test_rclip_searches_with_the_model(models, exported, tmp_path):
    python, model = tool("MINICLIP_RCLIP_PYTHON"), models["rclip"]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (301, 400, 3), np.uint8)).save(tmp_path / "image.png")
    shutil.copytree(exported("rclip"), tmp_path / "data")  # rclip writes its index beside the models
    arguments = [HERE / "read_with_rclip.py", json.dumps(CAPTIONS), tmp_path / "image.png"]
    result = output_of([python, *arguments], RCLIP_DATADIR=str(tmp_path / "data"))
    np.testing.assert_allclose(result["texts"], model.encode_text(CAPTIONS), rtol=0, atol=1e-2)
    np.testing.assert_allclose(result["images"], model.encode_image(tmp_path / "image.png"), rtol=0, atol=1e-2)


@pytest.mark.peer
def test_transformers_js_runs_in_node(models, exported):
    package, node = tool("MINICLIP_TRANSFORMERS_JS"), shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    model = models["transformers.js"]
    module = package / "node_modules" / "@huggingface" / "transformers" / "dist" / "transformers.node.mjs"
    pixels = sample_pixels(model.config, 2)
    arguments = [json.dumps(CAPTIONS), json.dumps({"shape": pixels.shape, "data": pixels.flatten().tolist()})]
    command = [node, HERE / "transformers_js.mjs", module, exported("transformers.js"), "clip", *arguments]
    result = output_of([*command, "fp32", "q8", "q4"])
    assert result["grey"] == [1, 3, 16, 16]
    for kind, expected in (("text", model.encode_text(CAPTIONS)), ("image", model.encode_image(pixels))):
        np.testing.assert_allclose(unit(result["embeddings"]["fp32"][kind]), expected, rtol=0, atol=1e-5)
        for form, least in (("q8", 0.97), ("q4", 0.8)):
            assert (unit(result["embeddings"][form][kind]) * expected.numpy()).sum(-1).min() > least
