"""Options in messages, as Python and as a command spell them."""

from miniclip.utils.option_names import flags, option

TEMPLATES = {"image_size": "--image-size{}", "agree": "--agree{}", "config": "`miniclip convert --architecture{}`"}


def test_python_by_default():
    assert option("image_size") == "image_size"
    assert option("image_size", 64) == "image_size=64"
    assert option("tokenizer", "a b.json") == "tokenizer='a b.json'"
    assert option("pretrained", False) == "pretrained=False"


def test_flags_inside_a_command_only():
    with flags(TEMPLATES):
        assert option("image_size") == "--image-size"
        assert option("image_size", 64) == "--image-size 64"
        assert option("agree", True) == "--agree"
        assert option("agree", False) == "--no-agree"
        assert option("config", "my model.json") == "`miniclip convert --architecture 'my model.json'`"
        assert option("other", 1) == "other=1"  # an option that the command line does not have
    assert option("image_size", 64) == "image_size=64"
