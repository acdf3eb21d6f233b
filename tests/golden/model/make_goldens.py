"""Makes goldens.npz and parameter_counts.json: what three reference implementations give for the cases of seeded.py.

    python make_goldens.py

Needs the reference environment: PyTorch, OpenAI's own `clip` (pip install openai-clip), open_clip_torch, transformers.
All compute in fp32 on the CPU. A name in goldens.npz is "case/reference/quantity"; "case/reference/gradients" has a row
per parameter, in the order of "case/parameters": norm, largest magnitude, then samples at evenly spaced places.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import open_clip
import seeded
import torch
import torch.nn.functional as F
import transformers
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor

import clip

HERE = Path(__file__).parent
BATCH = 3
SAMPLES = 8
START_OF_TRAINING = math.log(1 / 0.07)

Weights = Mapping[str, Tensor]
Encode = Callable[[Tensor], Tensor]


def openai_model(case: Mapping[str, object]) -> torch.nn.Module | None:
    return None if "gelu" in case else clip.model.CLIP(*case["sizes"])


def openclip_model(case: Mapping[str, object]) -> torch.nn.Module:
    embed_dim, resolution, layers, width, patch, context, vocab, text_width, text_heads, text_layers = case["sizes"]
    vision = CLIPVisionCfg(
        layers=layers,
        width=width,
        head_width=width // case["heads"] if "heads" in case else 64,
        mlp_ratio=4.9231 if "mlp" in case else 4.0,
        patch_size=patch,
        image_size=resolution,
    )
    text = CLIPTextCfg(context_length=context, vocab_size=vocab, width=text_width, heads=text_heads, layers=text_layers)
    return open_clip.CLIP(embed_dim, vision, text, quick_gelu="gelu" not in case)


def transformers_names(state_dict: Weights) -> dict[str, tuple[str, int | None]]:
    """For every parameter of ``CLIPModel``: the flat name, and which third of it if it is a part of in_proj."""
    names: dict[str, tuple[str, int | None]] = {}
    inner = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    outer = {
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.proj": "visual_projection.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "text_projection": "text_projection.weight",
        "logit_scale": "logit_scale",
    }
    norms = {"visual.ln_pre": "pre_layrnorm", "visual.ln_post": "post_layernorm", "ln_final": "final_layer_norm"}
    for key in state_dict:
        tower = "vision_model." if key.startswith("visual.") else "text_model."
        module, _, kind = key.rpartition(".")
        if key in outer:
            names[outer[key]] = (key, None)
        elif module in norms:
            names[f"{tower}{norms[module]}.{kind}"] = (key, None)
        else:
            number, _, part = key.split("resblocks.")[1].partition(".")
            layer = f"{tower}encoder.layers.{number}."
            if part.startswith("attn.in_proj_"):
                for third, letter in enumerate("qkv"):
                    names[f"{layer}self_attn.{letter}_proj.{part.removeprefix('attn.in_proj_')}"] = (key, third)
            elif part.startswith("attn.out_proj"):
                names[f"{layer}self_{part}"] = (key, None)
            else:
                part_module, _, _ = part.rpartition(".")
                names[f"{layer}{inner[part_module]}.{kind}"] = (key, None)
    return names


def transformers_model(case: Mapping[str, object], weights: Weights) -> torch.nn.Module | None:
    embed_dim, resolution, layers, width, patch, context, vocab, text_width, text_heads, text_layers = case["sizes"]
    if patch is None:
        return None
    activation = "gelu" if "gelu" in case else "quick_gelu"
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            projection_dim=embed_dim,
            vision_config={
                "hidden_size": width,
                "intermediate_size": case.get("mlp", 4 * width),
                "num_hidden_layers": layers,
                "num_attention_heads": case.get("heads", width // 64),
                "image_size": resolution,
                "patch_size": patch,
                "hidden_act": activation,
                "projection_dim": embed_dim,
            },
            text_config={
                "vocab_size": vocab,
                "hidden_size": text_width,
                "intermediate_size": 4 * text_width,
                "num_hidden_layers": text_layers,
                "num_attention_heads": text_heads,
                "max_position_embeddings": context,
                "hidden_act": activation,
                "bos_token_id": vocab - 2,
                "eos_token_id": vocab - 1,
                "projection_dim": embed_dim,
            },
        )
    )
    state_dict = {}
    for name, (key, third) in transformers_names(weights).items():
        value = weights[key] if third is None else weights[key].chunk(3)[third]
        state_dict[name] = value.t() if name in ("visual_projection.weight", "text_projection.weight") else value
    report = model.load_state_dict(state_dict, strict=False)
    assert not report.unexpected_keys and all("position_ids" in key for key in report.missing_keys), report
    return model


def measure(
    model: torch.nn.Module, encode_image: Encode, encode_text: Encode, images: Tensor, texts: Tensor
) -> dict[str, np.ndarray]:
    with torch.no_grad():
        features = encode_image(images), encode_text(texts)
        a, b = (F.normalize(x) for x in features)
        result = {
            "image_features": features[0].numpy(),
            "text_features": features[1].numpy(),
            "logits_per_image": (model.logit_scale.exp() * a @ b.t()).numpy(),
        }
        model.logit_scale.fill_(START_OF_TRAINING)  # at 100 the softmax would magnify rounding
    a, b = F.normalize(encode_image(images)), F.normalize(encode_text(texts))
    logits = model.logit_scale.exp() * a @ b.t()
    labels = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2
    loss.backward()
    return {**result, "loss": loss.detach().numpy()}


def flat_gradients(model: torch.nn.Module, names: list[str], renaming: Mapping[str, tuple[str, int | None]]) -> Weights:
    own = dict(model.named_parameters())
    if not renaming:
        return {name: own[name].grad for name in names}
    parts: dict[str, list[Tensor]] = {}
    for name, (key, _) in renaming.items():  # q, k, v in this order
        gradient = own[name].grad
        parts.setdefault(key, []).append(gradient.t() if key in ("visual.proj", "text_projection") else gradient)
    return {name: torch.cat(parts[name]) if len(parts[name]) > 1 else parts[name][0] for name in names}


def summary(gradient: Tensor) -> list[float]:
    flat = gradient.flatten()
    places = np.linspace(0, len(flat) - 1, SAMPLES).astype(np.int64)
    return [float(flat.double().norm()), float(flat.abs().max()), *flat[places].tolist()]


def make_goldens() -> dict[str, np.ndarray]:
    goldens: dict[str, np.ndarray] = {}
    for case_name, case in seeded.CASES.items():
        openclip = openclip_model(case)
        shapes = {key: tuple(value.shape) for key, value in openclip.state_dict().items()}
        weights = {key: torch.from_numpy(value) for key, value in seeded.weights(shapes).items()}
        names = [name for name, _ in openclip.named_parameters()]
        images = torch.from_numpy(seeded.images(BATCH, case["sizes"][1]))
        texts = torch.from_numpy(seeded.texts(BATCH, case["sizes"][5], case["sizes"][6])).long()
        goldens[f"{case_name}/parameters"] = np.array(names)

        models = {"openai": openai_model(case), "openclip": openclip, "transformers": transformers_model(case, weights)}
        for reference, model in models.items():
            if model is None:
                continue
            renaming: Mapping[str, tuple[str, int | None]] = {}
            if reference == "transformers":
                renaming = transformers_names(weights)
                encoders = (
                    lambda x, m=model: m.visual_projection(m.vision_model(pixel_values=x).pooler_output),
                    lambda x, m=model: m.text_projection(m.text_model(input_ids=x).pooler_output),
                )
            else:
                model.load_state_dict(weights)
                encoders = (model.eval().encode_image, model.encode_text)
            found = measure(model.eval(), *encoders, images, texts)
            gradients = flat_gradients(model, names, renaming)
            found["gradients"] = np.array([summary(gradients[name]) for name in names], np.float32)
            goldens |= {f"{case_name}/{reference}/{key}": value for key, value in found.items()}

            first = f"{case_name}/openclip" if "gelu" in case else f"{case_name}/openai"
            unit = [found["image_features"], goldens[f"{first}/image_features"]]
            unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in unit]
            print(f"{case_name:12} {reference:12} loss {found['loss']:.6f}, image features differ from", end=" ")
            print(f"{first.rpartition('/')[2]}'s by {abs(unit[0] - unit[1]).max():.1e}", file=sys.stdout)
    packages = {"torch": torch, "numpy": np, "open_clip": open_clip, "transformers": transformers}
    goldens["versions"] = np.array(
        [f"{name} {package.__version__}" for name, package in packages.items()] + ["openai-clip 1.0.1"]
    )
    return goldens


OPENCLIP_NAMES = {
    **{name: name.replace("/", "-").replace("@336px", "-336") for name in clip.available_models()},
    **{name: name for name in ("ViT-H-14", "ViT-g-14", "ViT-bigG-14")},
}


def parameter_counts() -> dict[str, int]:
    """Of the models that OpenCLIP builds from its own configurations, by our names."""
    counts = {}
    for name, theirs in OPENCLIP_NAMES.items():
        config = open_clip.get_model_config(theirs)
        with torch.device("meta"):
            model = open_clip.CLIP(**config)
        counts[name] = sum(parameter.numel() for parameter in model.parameters())
    return counts


def main() -> None:
    counts = parameter_counts()
    (HERE / "parameter_counts.json").write_text(json.dumps(counts, indent=2) + "\n")
    np.savez_compressed(HERE / "goldens.npz", **make_goldens())


if __name__ == "__main__":
    main()
