"""Key maps: other projects' parameter names, miniclip's, and the operation between them, one row each.

`{i}` stands for each block of the tower, `{p}` for weight and for bias. A row whose parameter the model does not have
is skipped. A row without a parameter names a tensor that a file may hold and no model needs. `conversion.py` runs the
rows in both directions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from miniclip.checkpoints.operations import SAME, TRANSPOSED, Operation, leading, positions, scalar, stacked


class Row(NamedTuple):
    """A row of a key map.

    Attributes:
        keys: the name in the other project's file, or several names whose tensors make one parameter.
        parameter: the name in miniclip's model; None: the tensor is ignored.
        operation: the conversion between the two.
    """

    keys: str | tuple[str, ...]
    parameter: str | None
    operation: Operation = SAME


QKV = stacked(1, 1, 1)

# OpenAI's CLIP, whose names open_clip's towers use too (https://github.com/openai/CLIP, clip/model.py)
OPENAI_IMAGE = (
    Row("visual.conv1.{p}", "image.patches.{p}"),
    Row("visual.class_embedding", "image.class_token"),
    Row("visual.positional_embedding", "image.positions", positions()),
    Row("visual.ln_pre.{p}", "image.norm_before.{p}"),
    Row("visual.transformer.resblocks.{i}.ln_1.{p}", "image.blocks.{i}.norm1.{p}"),
    Row("visual.transformer.resblocks.{i}.attn.in_proj_{p}", "image.blocks.{i}.attention.qkv.{p}"),
    Row("visual.transformer.resblocks.{i}.attn.out_proj.{p}", "image.blocks.{i}.attention.out.{p}"),
    Row("visual.transformer.resblocks.{i}.ln_2.{p}", "image.blocks.{i}.norm2.{p}"),
    Row("visual.transformer.resblocks.{i}.mlp.c_fc.{p}", "image.blocks.{i}.mlp.up.{p}"),
    Row("visual.transformer.resblocks.{i}.mlp.c_proj.{p}", "image.blocks.{i}.mlp.down.{p}"),
    Row("visual.ln_post.{p}", "image.norm_after.{p}"),
    Row("visual.proj", "image.projection.weight", TRANSPOSED),
)
OPENAI_TEXT = (
    Row("token_embedding.weight", "text.tokens.weight"),
    Row("positional_embedding", "text.positions"),
    Row("transformer.resblocks.{i}.ln_1.{p}", "text.blocks.{i}.norm1.{p}"),
    Row("transformer.resblocks.{i}.attn.in_proj_{p}", "text.blocks.{i}.attention.qkv.{p}"),
    Row("transformer.resblocks.{i}.attn.out_proj.{p}", "text.blocks.{i}.attention.out.{p}"),
    Row("transformer.resblocks.{i}.ln_2.{p}", "text.blocks.{i}.norm2.{p}"),
    Row("transformer.resblocks.{i}.mlp.c_fc.{p}", "text.blocks.{i}.mlp.up.{p}"),
    Row("transformer.resblocks.{i}.mlp.c_proj.{p}", "text.blocks.{i}.mlp.down.{p}"),
    Row("ln_final.{p}", "text.norm_after.{p}"),
)
TEXT_MATRIX = (Row("text_projection", "text.projection.weight", TRANSPOSED),)
TEXT_LINEAR = (Row("text_projection.{p}", "text.projection.{p}"),)  # open_clip's projection with a bias
SCALARS = (Row("logit_scale", "log_scale", scalar(0)), Row("logit_bias", "logit_bias", scalar(0)))
OPENAI_SIZES = (Row("input_resolution", None), Row("context_length", None), Row("vocab_size", None))

# timm's vision transformers, inside open_clip (https://github.com/huggingface/pytorch-image-models)
TIMM_IMAGE = (
    Row("visual.trunk.patch_embed.proj.{p}", "image.patches.{p}"),
    Row("visual.trunk.cls_token", "image.class_token", leading(2)),
    Row("visual.trunk.pos_embed", "image.positions", positions(1)),
    Row("visual.trunk.norm_pre.{p}", "image.norm_before.{p}"),
    Row("visual.trunk.blocks.{i}.norm1.{p}", "image.blocks.{i}.norm1.{p}"),
    Row("visual.trunk.blocks.{i}.attn.qkv.{p}", "image.blocks.{i}.attention.qkv.{p}"),
    Row("visual.trunk.blocks.{i}.attn.proj.{p}", "image.blocks.{i}.attention.out.{p}"),
    Row("visual.trunk.blocks.{i}.norm2.{p}", "image.blocks.{i}.norm2.{p}"),
    Row("visual.trunk.blocks.{i}.mlp.fc1.{p}", "image.blocks.{i}.mlp.up.{p}"),
    Row("visual.trunk.blocks.{i}.mlp.fc2.{p}", "image.blocks.{i}.mlp.down.{p}"),
    Row("visual.trunk.norm.{p}", "image.norm_after.{p}"),
    Row("visual.trunk.attn_pool.latent", "image.pool.query", leading(2)),
    Row(
        ("visual.trunk.attn_pool.q.{p}", "visual.trunk.attn_pool.kv.{p}"),
        "image.pool.attention.qkv.{p}",
        stacked(1, 2),
    ),
    Row("visual.trunk.attn_pool.proj.{p}", "image.pool.attention.out.{p}"),
    Row("visual.trunk.attn_pool.norm.{p}", "image.pool.norm.{p}"),
    Row("visual.trunk.attn_pool.mlp.fc1.{p}", "image.pool.mlp.up.{p}"),
    Row("visual.trunk.attn_pool.mlp.fc2.{p}", "image.pool.mlp.down.{p}"),
    Row("visual.trunk.head.{p}", "image.projection.{p}"),
)

# transformers' CLIPModel and SiglipModel (https://github.com/huggingface/transformers)
TRANSFORMERS_TOWERS = (
    Row("vision_model.embeddings.patch_embedding.{p}", "image.patches.{p}"),
    Row("vision_model.embeddings.class_embedding", "image.class_token"),
    Row("vision_model.embeddings.position_embedding.weight", "image.positions", positions()),
    Row("vision_model.pre_layrnorm.{p}", "image.norm_before.{p}"),  # the library's spelling
    *(
        row
        for key, tower in (("vision_model", "image"), ("text_model", "text"))
        for row in (
            Row(f"{key}.encoder.layers.{{i}}.layer_norm1.{{p}}", f"{tower}.blocks.{{i}}.norm1.{{p}}"),
            Row(
                tuple(f"{key}.encoder.layers.{{i}}.self_attn.{part}_proj.{{p}}" for part in "qkv"),
                f"{tower}.blocks.{{i}}.attention.qkv.{{p}}",
                QKV,
            ),
            Row(f"{key}.encoder.layers.{{i}}.self_attn.out_proj.{{p}}", f"{tower}.blocks.{{i}}.attention.out.{{p}}"),
            Row(f"{key}.encoder.layers.{{i}}.layer_norm2.{{p}}", f"{tower}.blocks.{{i}}.norm2.{{p}}"),
            Row(f"{key}.encoder.layers.{{i}}.mlp.fc1.{{p}}", f"{tower}.blocks.{{i}}.mlp.up.{{p}}"),
            Row(f"{key}.encoder.layers.{{i}}.mlp.fc2.{{p}}", f"{tower}.blocks.{{i}}.mlp.down.{{p}}"),
            Row(f"{key}.embeddings.position_ids", None),  # in files of older versions
        )
    ),
    Row("vision_model.post_layernorm.{p}", "image.norm_after.{p}"),
    Row("text_model.embeddings.token_embedding.weight", "text.tokens.weight"),
    Row("text_model.embeddings.position_embedding.weight", "text.positions"),
    Row("text_model.final_layer_norm.{p}", "text.norm_after.{p}"),
)
TRANSFORMERS_CLIP = (
    *TRANSFORMERS_TOWERS,
    Row("visual_projection.weight", "image.projection.weight"),
    Row("text_projection.weight", "text.projection.weight"),
    Row("logit_scale", "log_scale", scalar(0)),
)
TRANSFORMERS_SIGLIP = (
    *TRANSFORMERS_TOWERS,
    Row("vision_model.head.probe", "image.pool.query", leading(2)),
    Row("vision_model.head.attention.in_proj_{p}", "image.pool.attention.qkv.{p}"),
    Row("vision_model.head.attention.out_proj.{p}", "image.pool.attention.out.{p}"),
    Row("vision_model.head.layernorm.{p}", "image.pool.norm.{p}"),
    Row("vision_model.head.mlp.fc1.{p}", "image.pool.mlp.up.{p}"),
    Row("vision_model.head.mlp.fc2.{p}", "image.pool.mlp.down.{p}"),
    Row("text_model.head.{p}", "text.projection.{p}"),
    Row("logit_scale", "log_scale", scalar(1)),
    Row("logit_bias", "logit_bias", scalar(1)),
)


def prefixed(rows: tuple[Row, ...], prefix: str) -> tuple[Row, ...]:
    """Return the rows with a prefix before each of their keys."""

    def add(keys: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return prefix + keys if isinstance(keys, str) else tuple(prefix + key for key in keys)

    return tuple(Row(add(row.keys), row.parameter, row.operation) for row in rows)


def identity_rows(names: Iterable[str]) -> tuple[Row, ...]:
    """Return the key map of miniclip's own layout: every parameter under its name."""
    resizable = {"image.positions", "image.attnpool.positional_embedding"}
    return tuple(Row(name, name, positions() if name in resizable else SAME) for name in names)
