"""Published encoders in plain functional torch, and files in their layouts: what imports are compared with."""

import json

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

# Names of a block's parts, ours (and Step-Audio's) to transformers'.
TRANSFORMERS = {
    "attn.query": "self_attn.q_proj", "attn.key": "self_attn.k_proj", "attn.value": "self_attn.v_proj",
    "attn.out": "self_attn.out_proj", "attn_ln": "self_attn_layer_norm", "mlp.0": "fc1", "mlp.2": "fc2",
    "mlp_ln": "final_layer_norm",
}  # fmt: skip
SIZES = {"n_mels": 80, "width": 128, "heads": 4, "depth": 4, "positions": 60, "llm_dim": 96}


def random_weights(adaptor: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights by the names of Step-Audio 2's modules, with every bias and norm far from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    width = SIZES["width"]
    shapes = {
        "conv1.weight": (width, SIZES["n_mels"], 3), "conv1.bias": (width,),
        "conv2.weight": (width, width, 3), "conv2.bias": (width,),
        "positional_embedding.weight": (SIZES["positions"], width),
        "after_norm.weight": (width,), "after_norm.bias": (width,),
    }  # fmt: skip
    for n in range(SIZES["depth"]):
        for part in ("query", "key", "value", "out"):
            shapes[f"blocks.{n}.attn.{part}.weight"] = (width, width)
            if part != "key":
                shapes[f"blocks.{n}.attn.{part}.bias"] = (width,)
        for norm in ("attn_ln", "mlp_ln"):
            shapes |= {f"blocks.{n}.{norm}.weight": (width,), f"blocks.{n}.{norm}.bias": (width,)}
        shapes |= {f"blocks.{n}.mlp.0.weight": (4 * width, width), f"blocks.{n}.mlp.0.bias": (4 * width,)}
        shapes |= {f"blocks.{n}.mlp.2.weight": (width, 4 * width), f"blocks.{n}.mlp.2.bias": (width,)}
    if adaptor:
        shapes |= {
            "adapter.conv.weight": (width, width, 3), "adapter.conv.bias": (width,),
            "adapter.linear1.weight": (2048, width), "adapter.linear1.bias": (2048,),
            "adapter.linear2.weight": (SIZES["llm_dim"], 2048), "adapter.linear2.bias": (SIZES["llm_dim"],),
        }  # fmt: skip
    return {
        key: torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3)
        + (1.0 if key.endswith(("_ln.weight", "norm.weight")) else 0.0)
        for key, shape in shapes.items()
    }


def write(folder, layout: str, weights: dict[str, torch.Tensor], shards: int = 1, config: bool = True):
    """The weights as `layout` publishes them, with keys of the model's other parts; returns the folder."""
    folder.mkdir(parents=True)
    state = {published_key(key, layout): value.clone() for key, value in weights.items()}
    others = {
        "step_audio_2": ["model.layers.0.self_attn.q_proj.weight", "lm_head.weight"],
        "whisper": ["model.decoder.layers.0.fc1.weight", "proj_out.weight"],
        "openai_whisper": ["decoder.blocks.0.attn.query.weight"],
        "qwen2_audio": ["language_model.model.embed_tokens.weight", "multi_modal_projector.linear.weight"],
    }[layout]
    state |= {key: torch.zeros(2, 2) for key in others}
    if shards == 1:
        save_file(state, folder / "model.safetensors")
    else:
        names = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
        index = {key: names[n % shards] for n, key in enumerate(sorted(state))}
        for name in names:
            save_file({key: state[key] for key in state if index[key] == name}, folder / name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    if config:
        (folder / "config.json").write_text(json.dumps(published_config(layout)))
    return folder


def published_key(key: str, layout: str) -> str:
    if layout == "step_audio_2":
        return key if key.startswith("adapter.") else f"encoder.{key}"
    if layout == "openai_whisper":
        return "encoder." + key.replace("positional_embedding.weight", "positional_embedding").replace(
            "after_norm", "ln_post"
        )
    for ours, theirs in TRANSFORMERS.items():
        key = key.replace(f".{ours}.", f".{theirs}.")
    key = key.replace("blocks.", "layers.").replace("positional_embedding", "embed_positions")
    return {"whisper": "model.encoder.", "qwen2_audio": "audio_tower."}[layout] + key.replace(
        "after_norm", "layer_norm"
    )


def published_config(layout: str) -> dict:
    if layout in ("step_audio_2", "openai_whisper"):
        section = {
            "n_mels": SIZES["n_mels"], "n_audio_state": SIZES["width"], "n_audio_head": SIZES["heads"],
            "n_audio_layer": SIZES["depth"], "n_audio_ctx": SIZES["positions"],
        }  # fmt: skip
        if layout == "openai_whisper":
            return section
        return {
            "model_type": layout,
            "audio_encoder_config": section | {"llm_dim": SIZES["llm_dim"], "adapter_stride": 2},
        }
    section = {
        "num_mel_bins": SIZES["n_mels"], "d_model": SIZES["width"], "encoder_attention_heads": SIZES["heads"],
        "encoder_layers": SIZES["depth"], "max_source_positions": SIZES["positions"],
    }  # fmt: skip
    return {"model_type": layout} | (section if layout == "whisper" else {"audio_config": section})


def step_audio_mask(frames: int, declared: int) -> torch.Tensor:
    """Frames of 50 Hz that Step-Audio 2 attends to: its mask of mel frames, through the second convolution's stride."""
    return (torch.arange(frames) < declared)[(frames + 1) % 2 :: 2]


def encode(weights: dict[str, torch.Tensor], mel: torch.Tensor, allowed: torch.Tensor, pooling: bool) -> torch.Tensor:
    """Features (frames, width) of one clip, as the published module computes them from its whole log-mel.

    Args:
        weights: by Step-Audio's names.
        mel: (n_mels, frames).
        allowed: bool, frames of 50 Hz that attention may look at.
        pooling: average pairs of frames before the last norm.
    """
    x = F.gelu(F.conv1d(mel[None], weights["conv1.weight"], weights["conv1.bias"], padding=1))
    x = F.gelu(F.conv1d(x, weights["conv2.weight"], weights["conv2.bias"], stride=2, padding=1)).transpose(1, 2)
    x = x + weights["positional_embedding.weight"][: x.shape[1]]
    bias = torch.where(allowed, 0.0, -1e10)
    width, heads = x.shape[2], SIZES["heads"]
    for n in range(SIZES["depth"]):
        get = lambda name, n=n: (weights[f"blocks.{n}.{name}.weight"], weights.get(f"blocks.{n}.{name}.bias"))  # noqa: E731
        y = F.layer_norm(x, (width,), *get("attn_ln"))
        query, key, value = (
            F.linear(y, *get(f"attn.{part}")).view(1, -1, heads, width // heads).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scale = (width // heads) ** -0.25
        scores = (query * scale) @ (key * scale).transpose(2, 3) + bias
        attended = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        x = x + F.linear(attended, *get("attn.out"))
        y = F.layer_norm(x, (width,), *get("mlp_ln"))
        x = x + F.linear(F.gelu(F.linear(y, *get("mlp.0"))), *get("mlp.2"))
    if pooling:
        x = F.avg_pool1d(x.transpose(1, 2), 2, 2).transpose(1, 2)
    return F.layer_norm(x, (width,), weights["after_norm.weight"], weights["after_norm.bias"])[0]


def adapt(weights: dict[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
    """The published adaptor on (frames, width)."""
    x = F.gelu(F.conv1d(features.T[None], weights["adapter.conv.weight"], weights["adapter.conv.bias"], 2, 1))
    x = F.relu(F.linear(x.transpose(1, 2), weights["adapter.linear1.weight"], weights["adapter.linear1.bias"]))
    return F.linear(x, weights["adapter.linear2.weight"], weights["adapter.linear2.bias"])[0]


def log_mel(waveform: torch.Tensor, n_mels: int) -> torch.Tensor:
    """Step-Audio 2's log-mel of one clip (samples,), by torchaudio's filters (equal to the published ones to 1e-7)."""
    import torchaudio.functional as AF

    padded = F.pad(waveform, (0, 479))
    power = torch.stft(padded, 400, 160, window=torch.hann_window(400), return_complex=True)[..., :-1].abs() ** 2
    filters = AF.melscale_fbanks(201, 0.0, 8000.0, n_mels, 16_000, norm="slaney", mel_scale="slaney")
    log = (filters.T @ power).clamp_min(1e-10).log10()
    return (torch.maximum(log, log.max() - 8.0) + 4.0) / 4.0
