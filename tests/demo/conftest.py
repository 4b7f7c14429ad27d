"""A page over a small index, and a server of it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from miniclip import Index
from miniclip.data import Shapes
from miniclip.inference.model import CLIPModel
from miniclip.tokenizer import Tokenizer
from tests.toys import make_model

pytest.importorskip("fastapi", reason="needs the extra demo")
pytest.importorskip("uvicorn", reason="needs the extra demo")

from miniclip.demo.app import create_app
from miniclip.demo.gallery import Gallery
from miniclip.demo.guard import Access
from miniclip.demo.limits import Limits
from miniclip.demo.server import PageServer, address_of, bind
from miniclip.demo.service import About, Service

LIMITS = Limits(upload_bytes=200_000, upload_pixels=1_000_000, waiting=32)
EXAMPLES = ["a red circle", "blue square"]


@pytest.fixture(scope="session")
def demo_model(tokenizer: Tokenizer) -> CLIPModel:
    return make_model(tokenizer)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 24 images of different shapes, one of them in a folder and with a name that is not ASCII."""
    root = tmp_path_factory.mktemp("demo") / "photos"
    (root / "Straße").mkdir(parents=True)
    data = Shapes("val", 24, image_size=64)
    for index in range(len(data)):
        name = "Straße/a <i>é&'.png" if index == 23 else f"{index:02d}.jpg"
        data[index][0].crop((0, 0, 64, 40 + index)).save(root / name)
    return root


@pytest.fixture(scope="session")
def demo_index(demo_model: CLIPModel, photos: Path) -> Iterator[Index]:
    with Index.build(demo_model, photos, photos.with_suffix(".index"), num_workers=0) as index:
        yield index


@pytest.fixture(scope="session")
def make_service(demo_model: CLIPModel, demo_index: Index) -> Callable[..., Service]:
    """Function that returns a new service; the caller closes it."""

    def make(limits: Limits = LIMITS) -> Service:
        return Service(demo_model, Gallery(demo_index), About("runs/toy", EXAMPLES), limits)

    return make


@contextmanager
def running(service: Service, access: Access | None = None) -> Iterator[str]:
    """Context of a server in a thread; yields its address."""
    started = threading.Event()
    listener = bind("127.0.0.1", 0)
    server = PageServer(create_app(service, access or Access()), listener, started.set)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(30)
        yield address_of(listener, "127.0.0.1")
    finally:
        server.stop()
        thread.join(30)
        service.close()


@pytest.fixture(scope="session")
def page(make_service: Callable[..., Service]) -> Iterator[str]:
    """Address of a server that all tests share."""
    with running(make_service()) as address:
        yield address
