"""The networks of the zoo: one row each, with how it is built and what it is fed."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

Inputs = Callable[[int], Any]
"""From a number of samples to a calibration set: a tensor, or a tuple or dict of tensors."""


@dataclasses.dataclass(frozen=True)
class Network:
    """One row.

    Attributes:
        source: Where it comes from: `torchvision`, `timm` or `transformers`.
        name: Its name there.
        build: Builds it with random weights.
        inputs: Makes calibration inputs.
        samples: How many are used; the widest networks get by with fewer.
    """

    source: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    samples: int = 32


def noise(*shape: int) -> Inputs:
    """Standard normal inputs of one shape."""

    def make(count: int) -> Tensor:
        return torch.randn(count, *shape)

    return make


# Smallest square input that is not 32 pixels, and what the builder needs to be told to take it.
_SIZE = {"alexnet": 64, "inception_v3": 80, "maxvit_t": 224, "s3d": 224, "vit_h_14": 28}
_WIDE = ("vgg", "alexnet", "regnet_y_128gf", "regnet_y_32gf", "regnet_x_32gf", "vit_h", "vit_l", "convnext_large")
_VIDEO = ("mc3_18", "r2plus1d_18", "r3d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t")

_TIMM_SIZE = {"ghostnetv2_100": 64, "ghostnetv3_050": 64, "inception_v4": 80}
# One small member of each family. Families with attention follow the convolutional ones.
# fmt: off
_TIMM = (
    "convmixer_768_32", "convnext_atto", "cs3darknet_s", "cspresnet50", "densenetblur121d", "dla34", "dpn68",
    "ecaresnet26t", "edgenext_xx_small", "efficientnetv2_rw_t", "ese_vovnet19b_slim_dw", "fasternet_t0",
    "fastvit_t8", "fbnetc_100", "gcresnext26ts", "gernet_s", "ghostnet_050", "ghostnetv2_100", "hardcorenas_a",
    "hgnetv2_b0", "hrnet_w18_small", "inception_next_atto", "inception_v4", "lcnet_035", "mambaout_femto",
    "mixnet_s", "mobilenetv4_conv_small_035", "mobileone_s0", "nf_regnet_b0", "poolformer_s12", "regnetz_005",
    "repvgg_a0", "repvit_m0_9", "res2net50_14w_8s", "resnest14d", "resnet10t", "resnetv2_18", "rexnet_100",
    "selecsls42", "skresnet18", "starnet_s050", "tf_efficientnet_lite0", "tinynet_e", "tresnet_m", "xception41",
)
# fmt: on


def _torchvision() -> Iterator[Network]:
    for name in models.list_models(module=models):
        size = _SIZE.get(name, 32)
        told: dict[str, Any] = {"image_size": size} if name.startswith("vit_") else {}
        told |= {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        samples = 16 if name.startswith(_WIDE) else 32
        build = partial(models.get_model, name, weights=None, **told)
        yield Network("torchvision", name, build, noise(3, size, size), samples)
    for name in models.list_models(module=models.segmentation):
        build = partial(models.get_model, name, weights=None, weights_backbone=None)
        yield Network("torchvision", name, build, noise(3, 32, 32))
    for name in _VIDEO:
        size = 224 if name in ("s3d", "mvit_v1_b", "mvit_v2_s") else 32
        frames = 16 if name.startswith(("s3d", "mvit")) else 8
        build = partial(models.get_model, name, weights=None)
        samples = 4 if name.startswith("mvit") else 8  # 25,000 tokens each
        yield Network("torchvision", name, build, noise(3, frames, size, size), samples)


def _timm() -> Iterator[Network]:
    for name in _TIMM:
        size = _TIMM_SIZE.get(name, 32)
        yield Network("timm", name, partial(_create, name), noise(3, size, size))


def _create(name: str, **options: Any) -> nn.Module:
    model = importlib.import_module("timm").create_model(name, **options)
    assert isinstance(model, nn.Module)
    return model


_WORDS, _LENGTH = 256, 16
_ENCODER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_DECODER = {"vocab_size": _WORDS, "use_cache": False, "bos_token_id": None, "eos_token_id": None}
_IMAGE = {"image_size": 32, "patch_size": 8}


def _tokens(count: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(_WORDS, (count, _LENGTH))}


# Module and class, its configuration (small, as the time of a zoo counts), what it is fed.
_TRANSFORMERS: tuple[tuple[str, str, dict[str, Any], Inputs], ...] = (
    ("bert", "BertForSequenceClassification", {"vocab_size": _WORDS, **_ENCODER}, _tokens),
    ("distilbert", "DistilBertForSequenceClassification",
     {"vocab_size": _WORDS, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}, _tokens),
    ("vit", "ViTForImageClassification", {**_IMAGE, **_ENCODER}, noise(3, 32, 32)),
    ("deit", "DeiTForImageClassification", {**_IMAGE, **_ENCODER}, noise(3, 32, 32)),
    ("swin", "SwinForImageClassification",
     {"image_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4]},
     noise(3, 32, 32)),
    ("gpt2", "GPT2LMHeadModel", {**_DECODER, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32}, _tokens),
    ("llama", "LlamaForCausalLM", {**_DECODER, **_ENCODER, "num_key_value_heads": 2}, _tokens),
    ("qwen2", "Qwen2ForCausalLM", {**_DECODER, **_ENCODER, "num_key_value_heads": 2}, _tokens),
    ("whisper", "WhisperEncoder",
     {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128, "num_mel_bins": 16,
      "max_source_positions": 32}, noise(16, 64)),
)  # fmt: skip


def _transformers() -> Iterator[Network]:
    for family, kind, settings, inputs in _TRANSFORMERS:
        yield Network("transformers", kind, partial(_configured, family, kind, settings), inputs)


def _configured(family: str, kind: str, settings: dict[str, Any]) -> nn.Module:
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    configuration = getattr(module, kind).config_class(**settings)
    model = getattr(module, kind)(configuration)
    assert isinstance(model, nn.Module)
    return model


def networks() -> tuple[Network, ...]:
    """All rows; those of packages that are not installed fail when they are built."""
    return (*_torchvision(), *_timm(), *_transformers())


def build(network: Network, seed: int = 0) -> nn.Module:
    """The network in eval mode, its weights and its normalisation statistics random.

    A network as initialised hides errors: a mean of 0, a variance of 1 and a zero bias look the same whichever
    channels they are taken from, and a head of zeros gives the same output for any.
    """
    torch.manual_seed(seed)
    module = network.build()
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        for name, low, high in _RANDOM:
            value = getattr(part, name, None)
            if "Norm" in type(part).__name__ and isinstance(value, Tensor) and value.is_floating_point():
                with torch.no_grad():
                    value.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)
    for weight in module.parameters():
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.02, generator=generator)
    return module.eval()


_RANDOM = (("running_mean", -0.3, 0.3), ("running_var", 0.5, 1.5), ("weight", 0.5, 1.5), ("bias", -0.3, 0.3))
