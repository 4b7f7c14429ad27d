"""Fine-tuning with the sigmoid loss from a checkpoint of the contrastive loss."""

import pytest

from miniclip.hub import load, save


def test_sigmoid_loss_from_a_softmax_checkpoint(start, model, tmp_path):
    """The advice of the error can be followed, and the checkpoint of the run has the bias."""
    save(model, tmp_path / "softmax")
    loaded = load(tmp_path / "softmax")
    with pytest.raises(ValueError, match=r"call model\.add_logit_bias\(\) before"):
        start(model=loaded, loss="sigmoid")
    loaded.add_logit_bias()
    assert float(loaded.logit_bias) == -10.0
    assert float(loaded.log_scale.exp()) == pytest.approx(10.0)
    start(model=loaded, loss="sigmoid", callbacks=[], max_steps=2).fit()
    again = load(tmp_path / "run" / "last")
    assert again.config.logit_bias == -10.0
    assert float(again.logit_bias) == float(loaded.logit_bias) != -10.0
    with pytest.raises(ValueError, match="the model has a logit bias"):
        again.add_logit_bias()
