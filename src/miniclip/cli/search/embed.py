"""`miniclip embed`: embeddings of images or texts in a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from miniclip.cli.parsing import add_command, add_skip_options

EPILOG = """examples:
  miniclip embed vit_b_32 photos -o photos.npy             all images of a folder; names in photos.npy.names.json
  miniclip embed vit_b_32 photos.csv -o photos.parquet     the images of a dataset; columns name and embedding
  miniclip embed vit_b_32 queries.txt -o queries.npy       one text a line
  miniclip embed vit_b_32 "photos.csv?text=title" -o titles.safetensors
  sort -u words.txt | miniclip embed vit_b_32 - -o words.npy

After Ctrl-C or a kill, the same command resumes; finished parts are in OUT.partial.
"""


def add(commands: Any) -> None:
    """Add the command."""
    embed = add_command(commands, "embed", embed_command, "write embeddings of images or texts to a file", EPILOG)
    embed.add_argument("checkpoint", help="a name, a run, a checkpoint directory or file, or a Hub repository")
    embed.add_argument(
        "source",
        help="images: a folder, or a dataset as for `miniclip train --data`; texts: a .txt file with one text a line, "
        "TABLE?text=COLUMN, or - for standard input",
    )
    embed.add_argument("-o", "--output", required=True, metavar="OUT", help="file: .npy, .parquet or .safetensors")
    embed.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="(default float32)")
    embed.add_argument(
        "--normalize", action=argparse.BooleanOptionalAction, default=True, help="write unit vectors (default)"
    )
    embed.add_argument("--split", help="split of a dataset (default: all images)")
    embed.add_argument("--batch-size", type=int, metavar="N", help="(default: 32 images, 256 texts)")
    embed.add_argument("--num-workers", type=int, metavar="N", help="threads that read images (default: one per core)")
    add_skip_options(embed, "an image that cannot be read or a blank text")
    embed.add_argument(
        "--overwrite", action="store_true", help="replace OUT; start over if the model, the source or an option differs"
    )
    embed.add_argument("--device", help="cpu, cuda or mps (default: the GPU if there is one)")


def embed_command(checkpoint: str, source: str, output: str, device: str | None, **options: Any) -> None:
    """Run `miniclip embed`."""
    import miniclip
    from miniclip.embedding import embed
    from miniclip.embedding.outputs import require_output
    from miniclip.runtime.devices import select_device

    require_output(Path(output).expanduser(), options["overwrite"])
    model = miniclip.load(checkpoint, device=select_device(device))
    try:
        written = embed(model, source, output, progress=True, **options)
    except KeyboardInterrupt:
        print("stopped; the same command resumes")
        raise
    names = f", names in {written.names}" if written.names else ""
    skipped = f"; {len(written.skipped):,} left out, listed in {written.skipped_list}" if written.skipped else ""
    print(f"{written.path}: {written.count:,} embeddings of {written.embed_dim} numbers{names}{skipped}")
