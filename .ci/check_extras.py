"""Check what an installed extra promises, each on a small example: `python .ci/check_extras.py NAME …`."""

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import miniclip

CAPTIONS = ["a red circle", "a blue square"]


def tokenizers() -> None:
    """A tokenizer.json of another kind than CLIP's opens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from miniclip.tokenizer import load_tokenizer

    vocab = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red"])}
    other = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    other.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    other.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    other.save("tokenizer.json")
    assert load_tokenizer("tokenizer.json")(["a red"], context_length=6).tolist()[0][:4] == [2, 4, 5, 3]


def parquet() -> None:
    """A parquet file opens as a dataset."""
    import pyarrow
    import pyarrow.parquet

    paths = save_images()
    pyarrow.parquet.write_table(pyarrow.table({"image": paths, "caption": CAPTIONS}), "data.parquet")
    assert [list(group) for group in miniclip.data.open_data("data.parquet", "all").captions] == [[c] for c in CAPTIONS]


def datasets() -> None:
    """A Dataset of the datasets library becomes a dataset of miniclip."""
    import datasets as library

    rows = library.Dataset.from_dict({"image": save_images(), "caption": CAPTIONS})
    rows = rows.cast_column("image", library.Image())
    assert len(miniclip.data.Captions.from_huggingface(rows)) == 2


def heif() -> None:
    """A HEIC image opens, without a call that registers its reader."""
    from PIL import Image
    from pillow_heif import from_pillow

    from miniclip.data.decoding import open_image

    from_pillow(Image.new("RGB", (64, 48), "red")).save("image.heic")
    assert open_image("image.heic").size == (64, 48)


def tensorboard() -> None:
    """A run writes TensorBoard's event file."""
    train("--tensorboard")
    assert list(Path("run").rglob("events.out.tfevents.*"))


def probe() -> None:
    """A linear probe by logistic regression separates two clusters."""
    import torch

    from miniclip.evaluation.probes.linear_probe import Features, Splits, probe

    features = Features(torch.cat([torch.randn(20, 4), torch.randn(20, 4) + 9]), torch.arange(40) // 20)
    assert probe(Splits(features, features, None, 2), "lbfgs").metrics()["top1"] == 100


def onnx() -> None:
    """A fresh model exports to ONNX, and onnxruntime gives its embeddings."""
    tokenizer = miniclip.Tokenizer.train(CAPTIONS, 540)
    model = miniclip.load("bert_vit_tiny", pretrained=False, tokenizer=tokenizer)
    miniclip.export(model, "exported", layout="onnx", preprocessing=True)
    assert Path("exported/visual.onnx").is_file()


def demo() -> None:
    """The page of a run on shapes answers, and ends with SIGTERM."""
    import subprocess
    import urllib.request

    train()
    command = [sys.executable, "-u", "-m", "miniclip", "demo", "run", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = next(line.split()[1] for line in process.stdout or () if line.startswith("open "))
        with urllib.request.urlopen(address + "api/about", timeout=60) as answer:
            assert b'"images":500' in answer.read()
        process.terminate()
        process.communicate()
    assert process.returncode == 0


def wandb() -> None:
    """The library of Weights & Biases has the functions that the logger calls."""
    import wandb as library

    assert library.init
    assert library.finish


def timm() -> None:
    """A model with an image tower of timm is built, saved and loaded again."""
    import torch

    from miniclip.config import CLIPConfig, TextConfig
    from miniclip.tower_config import TimmConfig

    image = TimmConfig(64, "convnext_atto", "", "linear")
    model = miniclip.CLIPModel(CLIPConfig(image, TextConfig(12, 99, 32, 1, 2), 16)).eval()
    miniclip.save(model, "model")
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(miniclip.load("model").encode_image(pixels), model.encode_image(pixels))


def save_images() -> list[str]:
    """Save two drawn images; returns their paths."""
    data = miniclip.data.Shapes("train", 2)
    for index in range(2):
        data[index][0].save(f"{index}.png")
    return ["0.png", "1.png"]


def train(*flags: str) -> None:
    """Train for two steps in the folder `run`."""
    from miniclip import cli

    assert cli.main(["train", "--max-steps", "2", "--run-dir", "run", *flags]) == 0


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (tokenizers, parquet, datasets, heif, tensorboard, wandb, probe, onnx, demo, timm)
}


def main() -> None:
    """Run the named checks, each in an empty folder."""
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            CHECKS[name]()
        print(f"extra {name}: works", flush=True)


if __name__ == "__main__":
    main()
