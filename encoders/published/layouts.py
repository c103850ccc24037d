"""Published weight layouts, and the names their keys have here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# transformers' names of a block's parts.
_TRANSFORMERS = {
    "embed_positions": "positional_embedding",
    "layers": "blocks",
    "layer_norm": "after_norm",
    "self_attn_layer_norm": "attn_ln",
    "final_layer_norm": "mlp_ln",
    "self_attn": "attn",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "out",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
}


@dataclass(frozen=True)
class Layout:
    """Where a published file keeps an encoder.

    Attributes:
        prefix: pattern of what stands before the encoder's own keys.
        names: published part of a key to its name here, dot by dot.
        others: patterns of the keys of other parts of the model: decoder, language model.
        encoder: its name here, as registered.
        pooling: of Whisper's shape: 2 where pairs of frames are averaged.
        adaptor: pattern of what stands before the adaptor's keys; None without one.
        config: path of the encoder's section in config.json; its own top level when empty.
        sizes: our argument to the section's key.
        fixed: values of the section's keys that this toolkit's encoder has built in.
        filled: whether the encoder was trained on clips that silence fills to all positions, and attends to it.
    """

    prefix: str
    names: Mapping[str, str]
    others: tuple[str, ...]
    encoder: str = "speech_transformer"
    pooling: int = 1
    adaptor: str | None = None
    config: tuple[str, ...] = ()
    sizes: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    filled: bool = False

    def here(self, key: str) -> str | None:
        """The name here of a published key; None for one of another part of the model."""
        if self.adaptor and (match := re.match(self.adaptor, key)):
            return "adaptor." + key[match.end() :]
        match = re.match(self.prefix, key)
        if not match:
            return None
        return ".".join(self.names.get(part, part) for part in key[match.end() :].split("."))

    def part(self, key: str) -> str:
        """The part of the model that a key of another part belongs to, as `proj_out` or `model.decoder`."""
        names = re.sub(r"^(wav2vec2|hubert|wavlm)\.", "", key).split(".")
        return ".".join(names[: 2 if names[0] == "model" else 1])

    def is_other(self, key: str) -> bool:
        """Whether a key is known to belong to another part of the model."""
        return any(re.match(pattern, key) for pattern in self.others)


_TRANSFORMERS_SIZES = {
    "n_mels": "num_mel_bins",
    "width": "d_model",
    "depth": "encoder_layers",
    "heads": "encoder_attention_heads",
    "positions": "max_source_positions",
}

_OPENAI_SIZES = {
    "n_mels": "n_mels",
    "width": "n_audio_state",
    "depth": "n_audio_layer",
    "heads": "n_audio_head",
    "positions": "n_audio_ctx",
}

_WAV2VEC2_SIZES = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "extractor_width": "conv_dim",
    "position_kernel": "num_conv_pos_embeddings",
    "position_groups": "num_conv_pos_embedding_groups",
    "extractor_norm": "feat_extract_norm",
    "extractor_bias": "conv_bias",
    "norm_first": "do_stable_layer_norm",
}

# Adapters (of a downsampled output, of a language) and the norms of some HuBERTs are layers that encoders here lack.
_WAV2VEC2_FIXED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "add_adapter": False,
    "adapter_attn_dim": None,
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "num_buckets": 320,
    "max_bucket_distance": 800,
}


def _wav2vec2(name: str) -> Layout:
    """The layout of wav2vec 2.0 and its kin in transformers; `name` stands before the keys of models with a head."""
    heads = ("lm_head", "project_hid", "project_q", "projector", "classifier", "tdnn", "objective")
    return Layout(
        # A model of speaker vectors has a linear layer of the name feature_extractor as well.
        prefix=rf"({name}\.)?(?=(feature_extractor\.conv_layers|feature_projection|encoder)\.)",
        names={
            "encoder": "transformer",
            "gru_rel_pos_const": "gate.gru_rel_pos_const",
            "gru_rel_pos_linear": "gate.gru_rel_pos_linear",
            "rel_attn_embed": "gate.rel_attn_embed",
        },
        others=(
            rf"({name}\.)?masked_spec_embed$",
            r"quantizer\.",
            r"layer_weights$",
            r"feature_extractor\.(weight|bias)$",
            *(rf"{head}\." for head in heads),
        ),
        encoder=name,
        sizes=_WAV2VEC2_SIZES,
        fixed=_WAV2VEC2_FIXED,
    )


# By config.json's model_type, but for openai_whisper, which has no such file.
LAYOUTS: dict[str, Layout] = {
    "step_audio_2": Layout(
        prefix=r"encoder\.",
        names={},
        others=(r"model\.", r"lm_head\.", r"language_model\."),
        pooling=2,
        adaptor=r"adapter\.",
        config=("audio_encoder_config",),
        sizes=_OPENAI_SIZES | {"adaptor_dim": "llm_dim"},
        fixed={"kernel_size": 3, "adapter_stride": 2},
    ),
    "whisper": Layout(
        prefix=r"(model\.)?encoder\.",
        names=_TRANSFORMERS,
        others=(r"(model\.)?decoder\.", r"proj_out\."),
        filled=True,
        sizes=_TRANSFORMERS_SIZES,
        fixed={"activation_function": "gelu", "scale_embedding": False},
    ),
    "openai_whisper": Layout(
        prefix=r"encoder\.",
        names={"ln_post": "after_norm", "positional_embedding": "positional_embedding.weight"},
        others=(r"decoder\.",),
        filled=True,
        sizes=_OPENAI_SIZES,
    ),
    "qwen2_audio": Layout(
        prefix=r"(model\.)?audio_tower\.",
        names=_TRANSFORMERS,
        others=(r"(model\.)?language_model\.", r"(model\.)?multi_modal_projector\.", r"lm_head\."),
        pooling=2,
        config=("audio_config",),
        sizes=_TRANSFORMERS_SIZES,
        fixed={"activation_function": "gelu", "scale_embedding": False},
    ),
    **{name: _wav2vec2(name) for name in ("wav2vec2", "hubert", "wavlm")},
}
