"""Building, updating and reading an index of a folder."""

import numpy as np

from miniclip import Index


def test_vectors_are_those_of_encode_image(photos, search_model):
    with Index.build(search_model, photos, batch_size=5) as index:
        assert len(index) == 12
        assert index.report.added == index.report.encoded == 12
        assert index.paths == sorted(str(path) for path in photos.rglob("*.png"))
        expected = search_model.encode_image(index.paths).numpy()
        assert index.embeddings.dtype == np.float16
        assert np.abs(index.embeddings - expected).max() < 1e-3


def test_second_build_encodes_nothing(photos, search_model):
    before = Index.build(search_model, photos)
    after = Index.build(search_model, photos)
    assert after.report.unchanged == 12
    assert after.report.encoded == 0
    assert (after.embeddings == before.embeddings).all()


def test_update_follows_the_files(photos, search_model):
    before = Index.build(search_model, photos)
    rows = dict(zip(before.paths, before.embeddings, strict=True))
    (photos / "0.png").rename(photos / "renamed.png")
    (photos / "1.png").unlink()
    (photos / "2.png").write_bytes((photos / "below" / "9.png").read_bytes())
    after = Index.build(search_model, photos)
    report = after.report
    assert (report.renamed, report.removed, report.updated, report.encoded, report.added) == (1, 1, 1, 0, 0)
    now = dict(zip(after.paths, after.embeddings, strict=True))
    assert (now[str(photos / "renamed.png")] == rows[str(photos / "0.png")]).all()
    assert (now[str(photos / "2.png")] == rows[str(photos / "below" / "9.png")]).all()
    assert str(photos / "1.png") not in now
