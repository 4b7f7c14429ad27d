"""Special tokens around a text, as the post_processor of a tokenizer.json describes them."""

from typing import Any

from miniclip.errors import CheckpointError
from miniclip.utils.formatting import short

Json = dict[str, Any]
NamedId = tuple[str, int]  # a token and its id


def parse_post_processor(processor: Json | None) -> tuple[list[NamedId], list[NamedId]]:
    """Return the tokens that a post_processor adds before and after a text.

    Raises:
        CheckpointError: the type of the post_processor is not known.
    """
    before: list[NamedId] = []
    after: list[NamedId] = []
    if not processor or processor["type"] == "ByteLevel":
        return before, after
    match processor["type"]:
        case "BertProcessing" | "RobertaProcessing":
            return [_named_id(*processor["cls"])], [_named_id(*processor["sep"])]
        case "Sequence":
            for step in processor["processors"]:
                first, last = parse_post_processor(step)
                before, after = first + before, after + last
        case "TemplateProcessing":
            tokens = before
            for piece in processor["single"]:
                if "Sequence" in piece:
                    tokens = after
                else:
                    special = processor["special_tokens"][piece["SpecialToken"]["id"]]
                    tokens += map(_named_id, special["tokens"], special["ids"])
        case other:
            raise CheckpointError(f"the post_processor has the unknown type {short(other)}")
    return before, after


def unused_token(processor: Json | None) -> str | None:
    """Return the one token that a template names without using it; `LibraryTokenizer.save` marks the end token so."""
    if not processor or processor["type"] != "TemplateProcessing":
        return None
    pieces = [*processor["single"], *processor["pair"]]
    used = {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}
    unused = [name for name in processor["special_tokens"] if name not in used]
    return unused[0] if len(unused) == 1 else None


def build_post_processor(before: list[NamedId], after: list[NamedId], unused: list[NamedId]) -> Json:
    """Return a template with the tokens before and after a text, and tokens that are only named."""
    first, second = (
        [*_pieces(before, kind), {"Sequence": {"id": text, "type_id": kind}}, *_pieces(after, kind)]
        for kind, text in enumerate("AB")
    )
    special_tokens = dict([*before, *after, *unused])
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in special_tokens.items()},
    }


def _named_id(name: str, index: int) -> NamedId:
    return str(name), int(index)


def _pieces(tokens: list[NamedId], kind: int) -> list[Json]:
    return [{"SpecialToken": {"id": name, "type_id": kind}} for name, _ in tokens]
