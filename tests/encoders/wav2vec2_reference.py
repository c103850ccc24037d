"""wav2vec 2.0, HuBERT and WavLM in plain functional torch, and folders in transformers' layout of them.

Written from transformers' modeling code, and equal to transformers 5.24 on these weights to 5e-7 of the largest value.
"""

import json
import math

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

WIDTH, HEADS, DEPTH, EXTRACTOR, KERNEL, GROUPS = 64, 4, 2, 32, 16, 4
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
BUCKETS, FARTHEST = 320, 800
SHAPES = {
    "base": {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False},
    "large": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}
WEIGHT_NORMS = {
    "old": ("weight_g", "weight_v"),
    "new": ("parametrizations.weight.original0", "parametrizations.weight.original1"),
}


def configuration(model_type: str, shape: str) -> dict:
    """What config.json says, without the keys of training."""
    return SHAPES[shape] | {
        "model_type": model_type, "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH, "hidden_act": "gelu", "feat_extract_activation": "gelu",
        "layer_norm_eps": 1e-5, "conv_dim": [EXTRACTOR] * 7, "conv_kernel": list(KERNELS),
        "conv_stride": list(STRIDES), "num_conv_pos_embeddings": KERNEL, "num_conv_pos_embedding_groups": GROUPS,
    }  # fmt: skip


def random_weights(config: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights by transformers' names, with every bias and norm far from its initial value; weight norm as `old`."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    for n, kernel in enumerate(KERNELS):
        layer = f"feature_extractor.conv_layers.{n}"
        shapes[f"{layer}.conv.weight"] = (EXTRACTOR, EXTRACTOR if n else 1, kernel)
        if config["conv_bias"]:
            shapes[f"{layer}.conv.bias"] = (EXTRACTOR,)
        if n == 0 or config["feat_extract_norm"] == "layer":
            shapes |= dict.fromkeys((f"{layer}.layer_norm.weight", f"{layer}.layer_norm.bias"), (EXTRACTOR,))
    linear = {"feature_projection.projection": (WIDTH, EXTRACTOR)}
    norms = {"feature_projection.layer_norm": EXTRACTOR, "encoder.layer_norm": WIDTH}
    for n in range(DEPTH):
        layer = f"encoder.layers.{n}"
        linear |= {f"{layer}.attention.{part}_proj": (WIDTH, WIDTH) for part in ("q", "k", "v", "out")}
        linear[f"{layer}.feed_forward.intermediate_dense"] = (4 * WIDTH, WIDTH)
        linear[f"{layer}.feed_forward.output_dense"] = (WIDTH, 4 * WIDTH)
        norms |= {f"{layer}.layer_norm": WIDTH, f"{layer}.final_layer_norm": WIDTH}
        if config["model_type"] == "wavlm":
            linear[f"{layer}.attention.gru_rel_pos_linear"] = (8, WIDTH // HEADS)
            shapes[f"{layer}.attention.gru_rel_pos_const"] = (1, HEADS, 1, 1)
    if config["model_type"] == "wavlm":
        shapes["encoder.layers.0.attention.rel_attn_embed.weight"] = (BUCKETS, HEADS)
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    positions = "encoder.pos_conv_embed.conv"
    shapes |= {f"{positions}.weight_g": (1, 1, KERNEL), f"{positions}.weight_v": (WIDTH, WIDTH // GROUPS, KERNEL)}
    shapes |= {f"{positions}.bias": (WIDTH,), "masked_spec_embed": (WIDTH,)}
    state = {}
    for key, shape in shapes.items():
        fan_in = math.prod(shape[1:]) if len(shape) > 1 and "weight_g" not in key and "gru" not in key else 10
        state[key] = torch.randn(shape, generator=generator) * fan_in**-0.5
        if key.endswith(("norm.weight", "weight_g", "gru_rel_pos_const")):
            state[key] += 1.5
    return state


def write(folder, weights: dict[str, torch.Tensor], config: dict, weight_norm="old", head=False, normalize=True):
    """A folder as it is downloaded; with a head of another task when asked for. Returns the folder."""
    folder.mkdir(parents=True)
    state = {key: value.clone() for key, value in weights.items()}
    positions = "encoder.pos_conv_embed.conv"
    for old, new in zip(WEIGHT_NORMS["old"], WEIGHT_NORMS[weight_norm], strict=True):
        state[f"{positions}.{new}"] = state.pop(f"{positions}.{old}")
    if head:
        state = {f"{config['model_type']}.{key}": value for key, value in state.items()}
        others = ("lm_head.weight", "quantizer.codevectors", "project_q.weight", "project_hid.bias", "layer_weights")
        state |= {key: torch.zeros(2, 2) for key in others}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    extractor = {"do_normalize": normalize, "sampling_rate": 16_000, "feature_size": 1}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    return folder


def normalized(samples: torch.Tensor) -> torch.Tensor:
    """A clip (samples,) as transformers' feature extractor normalizes it."""
    return (samples - samples.mean()) / (samples.var(unbiased=False) + 1e-7).sqrt()


def encode(weights: dict[str, torch.Tensor], config: dict, samples: torch.Tensor) -> torch.Tensor:
    """`last_hidden_state` of one clip (samples,), shape (frames, width)."""

    def parts(name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        return weights[f"{name}.weight"], weights.get(f"{name}.bias")

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], *parts(name))

    x = samples.view(1, 1, -1)
    for n, stride in enumerate(STRIDES):
        layer = f"feature_extractor.conv_layers.{n}"
        x = F.conv1d(x, *parts(f"{layer}.conv"), stride)
        if config["feat_extract_norm"] == "layer":
            x = norm(f"{layer}.layer_norm", x.transpose(1, 2)).transpose(1, 2)
        elif n == 0:
            x = F.group_norm(x, EXTRACTOR, *parts(f"{layer}.layer_norm"))
        x = F.gelu(x)
    x = F.linear(norm("feature_projection.layer_norm", x.transpose(1, 2)), *parts("feature_projection.projection"))

    positions = "encoder.pos_conv_embed.conv"
    size, direction = weights[f"{positions}.weight_g"], weights[f"{positions}.weight_v"]
    places = [size[0, 0, k] * direction[:, :, k] / direction[:, :, k].norm() for k in range(KERNEL)]
    moved = F.conv1d(
        x.transpose(1, 2), torch.stack(places, dim=2), weights[f"{positions}.bias"], 1, KERNEL // 2, 1, GROUPS
    )
    x = x + F.gelu(moved[:, :, : x.shape[1]]).transpose(1, 2)

    first = config["do_stable_layer_norm"]
    if not first:
        x = norm("encoder.layer_norm", x)
    bias = distance_bias(weights, x.shape[1]) if config["model_type"] == "wavlm" else None
    for n in range(DEPTH):
        layer = f"encoder.layers.{n}"
        y = norm(f"{layer}.layer_norm", x) if first else x
        query, key, value = (
            F.linear(y, *parts(f"{layer}.attention.{part}_proj"))[0].view(-1, HEADS, WIDTH // HEADS).transpose(0, 1)
            for part in "qkv"
        )
        scores = query @ key.transpose(1, 2) * (WIDTH // HEADS) ** -0.5
        if bias is not None:
            scores = scores + gates(weights, f"{layer}.attention", y[0]).unsqueeze(-1) * bias
        attended = (scores.softmax(dim=-1) @ value).transpose(0, 1).flatten(1)
        x = x + F.linear(attended, *parts(f"{layer}.attention.out_proj"))
        x = x if first else norm(f"{layer}.layer_norm", x)
        y = norm(f"{layer}.final_layer_norm", x) if first else x
        y = F.gelu(F.linear(y, *parts(f"{layer}.feed_forward.intermediate_dense")))
        x = x + F.linear(y, *parts(f"{layer}.feed_forward.output_dense"))
        x = x if first else norm(f"{layer}.final_layer_norm", x)
    return (norm("encoder.layer_norm", x) if first else x)[0]


def gates(weights: dict[str, torch.Tensor], attention: str, y: torch.Tensor) -> torch.Tensor:
    """WavLM's strength of the bias, from what attention takes (frames, width) to (heads, frames)."""
    weight, bias = (weights[f"{attention}.gru_rel_pos_linear.{part}"] for part in ("weight", "bias"))
    first, second = (
        torch.sigmoid(part.sum(dim=-1))
        for part in F.linear(y.view(-1, HEADS, WIDTH // HEADS), weight, bias).split(4, dim=-1)
    )
    constant = weights[f"{attention}.gru_rel_pos_const"].view(HEADS)
    return (first * (second * constant - 1.0) + 2.0).T


def distance_bias(weights: dict[str, torch.Tensor], frames: int) -> torch.Tensor:
    """WavLM's bias of each head for the distance from query to key, (heads, frames, frames)."""
    half, exact = BUCKETS // 2, BUCKETS // 4

    def bucket(distance: int) -> int:
        far, start = abs(distance), half if distance > 0 else 0
        if far >= exact:
            far = exact + int(math.log(far / exact) / math.log(FARTHEST / exact) * (half - exact))
        return start + min(far, half - 1)

    table = torch.tensor([[bucket(key - query) for key in range(frames)] for query in range(frames)])
    return weights["encoder.layers.0.attention.rel_attn_embed.weight"][table].permute(2, 0, 1)
