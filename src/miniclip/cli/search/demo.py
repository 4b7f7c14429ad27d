"""`miniclip demo`: a page in the browser that searches an index of images."""

from __future__ import annotations

import tempfile
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from miniclip.cli.parsing import add_command

PORT = 7860
EPILOG = f"""examples:
  miniclip demo vit_b_16 --index photos.index      then open http://127.0.0.1:{PORT}/
  miniclip demo runs/shapes                        the model of `miniclip train`, on images of its dataset
  miniclip demo vit_b_16 --index photos.index --host 0.0.0.0   for other machines too, with a token

`miniclip index MODEL FOLDER` builds an index. Only this machine can open the page, unless --host names another address.
"""


def add(commands: Any) -> None:
    """Add the command."""
    demo = add_command(commands, "demo", demo_command, "search an index of images on a page in the browser", EPILOG)
    demo.add_argument("checkpoint", help="a name, a run, a checkpoint directory or file, or a Hub repository")
    demo.add_argument("--index", help="an index of images, built with the same model (default: images of shapes)")
    demo.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    demo.add_argument("--port", type=int, default=PORT, help=f"port to listen on; 0: any free one (default {PORT})")
    demo.add_argument("--token", help="secret that the page needs (default: none for this machine, else random)")
    demo.add_argument("--open", action="store_true", help="open the page in the browser")
    demo.add_argument("--device", help="cpu, cuda or mps (default: the GPU if there is one)")


def demo_command(
    checkpoint: str, index: str | None, host: str, port: int, token: str | None, open: bool, device: str | None
) -> None:
    """Run `miniclip demo`."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError(f"the page needs the extra demo ({error}): pip install 'miniclip[demo]'") from error
    from miniclip.demo.app import create_app
    from miniclip.demo.gallery import Gallery
    from miniclip.demo.guard import access_to
    from miniclip.demo.server import PageServer, address_of, bind
    from miniclip.demo.service import Service

    _check_index(checkpoint, index)
    with ExitStack() as stack:
        listener = stack.enter_context(bind(host, port))  # before the model, which takes seconds
        access = access_to(host, listener.getsockname()[1], token)
        address = address_of(listener, host, access.token)
        model, opened, about = _load(checkpoint, index, device, stack)
        service = stack.enter_context(closing(Service(model, Gallery(opened), about)))
        print(f"{len(opened):,} images, {about.model}", flush=True)

        def on_start() -> None:
            print(f"open {address}\nCtrl-C ends it", flush=True)
            if open:
                threading.Thread(target=_open_browser, args=(address,), daemon=True).start()

        PageServer(create_app(service, access), listener, on_start).run()
    print("stopped", flush=True)


def _check_index(checkpoint: str, index: str | None) -> None:
    """Check that an index is given, or that the model is one of Shapes.

    Raises:
        FileNotFoundError: the index does not exist.
        ValueError: no index is given, and the model was not trained on Shapes.
    """
    from miniclip.cli.run_data import data_of_run
    from miniclip.search.snapshot import require_index

    if index is not None:
        require_index(Path(index).expanduser())
        return
    try:
        is_shapes = data_of_run(checkpoint)[0] == "shapes"
    except (ValueError, OSError):
        is_shapes = False
    if not is_shapes:
        raise ValueError(
            f"{checkpoint}: needs an index of images: build one with `miniclip index {checkpoint} FOLDER`, and add "
            "--index FOLDER.index; without it, only the model of `miniclip train` has images to show"
        )


def _load(checkpoint: str, index: str | None, device: str | None, stack: ExitStack) -> Any:
    """Return the model, the index, and the description of the page; temporary files belong to the stack."""
    import miniclip
    from miniclip.demo.example import describe_shapes, shapes_index
    from miniclip.demo.service import About
    from miniclip.runtime.devices import select_device

    model = miniclip.load(checkpoint, device=select_device(device))
    if model.tokenizer is None:
        raise ValueError(f"{checkpoint}: has no tokenizer, so the page could not search by text")
    if index is not None:
        opened = stack.enter_context(miniclip.Index.open(index, model))
        if not len(opened):
            raise ValueError(f"{index}: holds no images")
        return model, opened, About(checkpoint)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="miniclip-demo-"))
    print("no --index: drawing the validation images of shapes", flush=True)
    return model, stack.enter_context(shapes_index(model, Path(folder))), describe_shapes(checkpoint)


def _open_browser(address: str) -> None:
    import webbrowser

    webbrowser.open(address)
