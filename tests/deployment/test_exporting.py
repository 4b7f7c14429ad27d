"""Exports leave all files or nothing, refuse what they cannot write, and are checked before they appear."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import miniclip
from miniclip import cli
from miniclip.deployment import exporting, onnx_files
from miniclip.deployment.directory import written_directory
from miniclip.deployment.layouts import settings, transformers_js
from miniclip.deployment.towers import end_rows, sample_pixels
from miniclip.deployment.verification import require_cosine, verify
from miniclip.errors import CheckpointError
from tests.deployment.conftest import LAYOUTS, build, run

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture
def writer(monkeypatch):
    """Replace the writer of the layout "onnx" by one that writes text: exports take seconds."""

    def replace(write):
        monkeypatch.setattr(exporting, "WRITERS", {"onnx": write})

    replace(lambda model, folder, options: (folder / "visual.onnx").write_text("new"))
    return replace


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("error", [CheckpointError("wrong"), KeyboardInterrupt()])
@pytest.mark.parametrize("there", [False, True])
def test_an_error_leaves_nothing(error, there, writer, model, tmp_path):
    def write(model, folder, options):
        (folder / "visual.onnx").write_text("half")
        raise error

    writer(write)
    if there:
        (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(type(error)):
        miniclip.export(model, tmp_path / "a" / "b", layout="onnx")
    assert names(tmp_path) == (["a", "a/b"] if there else [])


def test_ctrl_c_inside_the_exporter_ends_the_export(model, monkeypatch, tmp_path):
    def export(*args, **options):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise AttributeError("module 'torch._dynamo' has no attribute 'exc'")  # noqa: B904

    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(KeyboardInterrupt):
        miniclip.export(model, tmp_path / "out", layout="onnx")
    assert names(tmp_path) == []


def test_a_new_directory_appears_in_one_step(writer, model, tmp_path):
    def write(model, folder, options):
        (folder / "visual").mkdir()
        (folder / "visual" / "model.onnx").write_text("new")
        assert not (tmp_path / "a").exists()

    writer(write)
    miniclip.export(model, tmp_path / "a" / "b", layout="onnx")
    assert names(tmp_path) == ["a", "a/b", "a/b/visual", "a/b/visual/model.onnx"]


def test_overwrite_replaces_models_and_removes_those_of_an_earlier_export(writer, model, tmp_path):
    earlier = ("visual.onnx", "visual.onnx.data", "visual_int8.onnx", "int8_check.json", "tokenizer.json")
    for name in (*earlier, "notes.txt", "mine.onnx"):
        (tmp_path / name).write_text("old")
    with pytest.raises(FileExistsError, match="is not empty"):
        miniclip.export(model, tmp_path, layout="onnx")
    assert len(names(tmp_path)) == 7
    miniclip.export(model, tmp_path, layout="onnx", overwrite=True)
    assert names(tmp_path) == ["mine.onnx", "notes.txt", "visual.onnx"]
    assert (tmp_path / "visual.onnx").read_text() == "new"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "immitch"}, r"unknown layout 'immitch'; did you mean 'immich'\?"),
        ({"layout": "nothing"}, "known: openai, open_clip, transformers, onnx, immich"),
        ({"layout": "immich", "preprocessing": True}, "only 'onnx' has"),
        ({"layout": "optimum", "forms": ("q8",)}, r"only 'transformers\.js' has"),
        ({"layout": "transformers.js", "forms": ("q9",)}, "unknown form 'q9'"),
        ({"layout": "transformers.js", "forms": ()}, "forms is empty"),
        ({"layout": "transformers.js", "precision": "float16"}, "it writes forms"),
        ({"layout": "openai", "precision": "float16"}, "the model's own precision"),
        ({"layout": "onnx", "precision": "bfloat16"}, "unknown precision 'bfloat16'"),
    ],
)
def test_refuses_options_of_other_layouts(options, message, model, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        miniclip.export(model, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_names_the_extra_for_a_missing_library(monkeypatch, model, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"onnxscript is not installed.*pip install 'miniclip\[onnx\]'"):
        miniclip.export(model, tmp_path / "out", layout="onnx")
    assert names(tmp_path) == []


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "onnx"])
def test_applications_need_a_tokenizer(layout, toy_tokenizer, tmp_path):
    model = build("quickgelu", "causal", toy_tokenizer, layout)
    model.tokenizer = None
    with pytest.raises(ValueError, match="needs a tokenizer, and this model has none"):
        miniclip.export(model, tmp_path / "out", layout=layout)
    assert names(tmp_path) == []


def test_refuses_a_tokenizer_that_cannot_be_written(toy_tokenizer, tmp_path):
    class Callable_:
        vocab_size, end_id = toy_tokenizer.vocab_size, toy_tokenizer.end_id

        def __call__(self, texts, context_length=77, pad=False):
            return toy_tokenizer(texts, context_length, pad)

    with pytest.raises(ValueError, match=r"a Callable_, cannot be written as tokenizer\.json"):
        miniclip.export(build("quickgelu", "causal", Callable_()), tmp_path / "out", layout="immich")
    assert names(tmp_path) == []


def test_refuses_an_application_that_tokenizes_differently(toy_tokenizer):
    config = build("quickgelu", "causal", toy_tokenizer).config

    def encode(caption):
        return toy_tokenizer([caption.upper() + "!"], 12, pad=True)[0].tolist()

    with pytest.raises(ValueError, match=r"immich would tokenize '' to \[538, 256, 539\], and this model's"):
        settings.require_same_ids(toy_tokenizer, config, encode, "immich")


def test_rclip_names_what_differs(model, tmp_path):
    with pytest.raises(ValueError, match="image size 16, there 256; embedding 16, there 512"):
        miniclip.export(model, tmp_path / "out", layout="rclip")


def test_rclips_merges_end_without_a_line(exported, toy_tokenizer):
    lines = gzip.decompress((exported("rclip") / "tokenizer" / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode()
    assert lines.split("\n")[1:] == [" ".join(merge) for merge in toy_tokenizer.merges]


def test_a_wrong_file_is_refused(models, exported):
    file, model = exported("immich") / "visual" / "model.onnx", models["immich"]
    pixels = sample_pixels(model.config, 3)
    expected = model.encode_image(pixels).numpy()
    assert verify(file, [({"image": pixels.numpy()}, expected)]) < 1e-5
    with pytest.raises(CheckpointError, match=r"refused: model\.onnx differs by 1\.0e-04 for image"):
        verify(file, [({"image": pixels.numpy()}, expected + np.float32(1e-4))])
    with pytest.raises(CheckpointError, match=r"gives \(3, 16\) for .*; expected \(3, 15\)"):
        verify(file, [({"image": pixels.numpy()}, expected[:, 1:])])
    with pytest.raises(CheckpointError, match=r"model\.onnx fails for image \(3, 3, 15, 16\)"):
        verify(file, [({"image": pixels.numpy()[:, :, 1:]}, expected)])
    other = exported("transformers.js") / "onnx" / "vision_model.onnx"
    inputs = {"pixel_values": pixels.numpy()}
    with pytest.raises(CheckpointError, match=r"model_q4\.onnx has a cosine of 0\.9\d\d with vision_model\.onnx"):
        require_cosine(other.with_name("vision_model_q4.onnx"), other, inputs, least=0.9999)


def test_weights_above_the_limit_are_in_a_file_of_their_own(models, exported, monkeypatch, tmp_path):
    import onnx_ir

    source = exported("immich") / "visual" / "model.onnx"
    monkeypatch.setattr(onnx_files, "MAX_FILE", 1000)
    written = onnx_files.save(onnx_ir.load(source), tmp_path / "model.onnx", "model.onnx_data")
    assert [file.name for file in written] == ["model.onnx", "model.onnx_data"]
    assert written[0].stat().st_size < source.stat().st_size - written[1].stat().st_size + 20_000
    pixels = sample_pixels(models["immich"].config, 2).numpy()
    np.testing.assert_array_equal(run(written[0], image=pixels)[0], run(source, image=pixels)[0])


def test_transformers_js_names_files_of_weights(models, monkeypatch, tmp_path):
    def write(model, path, signature, precision="float32"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("graph")
        path.with_name(signature.external).write_text("weights")

    monkeypatch.setattr(transformers_js, "write_image_encoder", write)
    monkeypatch.setattr(transformers_js, "write_text_encoder", write)
    miniclip.export(models["transformers.js"], tmp_path / "out", layout="transformers.js", forms=("fp16",))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    external = {"vision_model_fp16.onnx": 1, "text_model_fp16.onnx": 1}
    assert config["transformers.js_config"] == {"use_external_data_format": external}
    files = sorted(file.name for file in (tmp_path / "out" / "onnx").iterdir())
    assert files == sorted([*external, *(f"{name}_data" for name in external)])


def test_rows_without_an_end_get_one():
    tokens = torch.tensor([[1, 2, 9, 0], [1, 2, 3, 4], [1, 2, 0, 0], [9, 5, 6, 7]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
    assert end_rows(tokens, None, 9).tolist() == [[1, 2, 9, 0], [1, 2, 3, 9], [1, 2, 0, 9], [9, 5, 6, 7]]
    assert end_rows(tokens, mask, 9).tolist() == [[1, 2, 9, 9], [1, 2, 3, 9], [1, 2, 9, 9], [9, 5, 6, 7]]


def test_half_precision_models_give_float32_files(models):
    """The reference is the model's weights in float32."""
    from miniclip.deployment import encoders

    model = build("quickgelu", "causal", models["onnx"].tokenizer).bfloat16()
    embed = encoders._reference(model, encoders.Signature("image"))
    pixels = sample_pixels(model.config, 2)
    torch.testing.assert_close(embed(pixels), model.float().encode_image(pixels), rtol=0, atol=1e-6)


def test_command(writer, model, tmp_path, capsys):
    miniclip.save(model, tmp_path / "mine")
    assert cli.main(["export", str(tmp_path / "mine"), str(tmp_path / "out")]) == 0
    assert f"{tmp_path / 'out'}: in the layout of onnx" in capsys.readouterr().out
    for arguments, message in (
        (["--layout", "openai"], "use `miniclip convert SOURCE TARGET --layout openai`"),
        (["--layout", "imich"], "did you mean 'immich'?"),
        (["--forms", "q9"], "unknown value 'q9'"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(["export", str(tmp_path / "mine"), str(tmp_path / "new"), *arguments])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path / "mine"), str(tmp_path / "out")]) == 2
    assert "replaced with --overwrite" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_files_stay_in_the_file_system_of_a_directory_that_exists(tmp_path):
    (tmp_path / "mount").mkdir()
    with written_directory(tmp_path / "mount") as folder:
        assert folder.parent == tmp_path / "mount"
        (folder / "a").write_text("a")
    assert names(tmp_path) == ["mount", "mount/a"]


def test_directory_has_usual_permissions(tmp_path):
    with written_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert Path(tmp_path / "out" / "a").read_text() == "a"
