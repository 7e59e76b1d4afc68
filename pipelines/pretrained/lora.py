"""Adapters beside a pretrained denoiser's weights, by peft (Hu et al., 2022, "LoRA")."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipelines.pretrained.config import LoRAConfig
from pipelines.pretrained.denoiser import MISSING

if TYPE_CHECKING:
    from torch import Tensor, nn

FILE = "pytorch_lora_weights.safetensors"
"""As diffusers calls it."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
NAME = "default"
"""Of the adapter."""


def inject(module: nn.Module, config: LoRAConfig) -> nn.Module:
    """The module with adapters in its layers, which alone are trained; what it computes is as before.

    Random numbers are torch's own, so that a seed set before decides them. Adapters are in fp32, whatever the
    layers are in.

    Raises:
        ValueError: peft is not installed, or no layer is called as the targets say.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(MISSING) from error

    alpha: Any = config.rank if config.alpha is None else config.alpha
    chosen = LoraConfig(
        r=config.rank,
        lora_alpha=alpha,
        target_modules=list(config.targets or ATTENTION),
        lora_dropout=0.0,
        init_lora_weights=True,
    )
    module.requires_grad_(False)
    try:
        inject_adapter_in_model(chosen, module, adapter_name=NAME)
    except ValueError as error:
        names = ", ".join(config.targets or ATTENTION)
        raise ValueError(f"lora.targets: no layer of the denoiser ends in {names}.") from error
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return module


def merged(module: nn.Module, base: Iterable[tuple[str, Tensor]] | None = None) -> dict[str, Tensor]:
    """The state of the module without adapters that computes the same, by the names it had before them.

    Args:
        base: its weights without adapters, by those names, where the module has them in less precision.
    """
    layers = dict(adapted(module))
    own = dict(_without(module, layers))
    state: dict[str, Tensor] = {}
    for name, tensor in own.items() if base is None else base:
        owner, _, last = name.rpartition(".")
        # A shape may be older than the module's: attention as convolutions.
        whole = tensor.view(own[name].shape)
        if owner in layers and last == "weight":
            delta = layers[owner].get_delta_weight(NAME)
            whole = (whole.to(delta) + delta).to(tensor.dtype if base is None else delta.dtype)
        state[name] = whole
    return state


def _without(module: nn.Module, layers: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The module's tensors but for the adapters', by the names they had before them."""
    for name, tensor in module.state_dict().items():
        place, _, last = name.rpartition(".")
        owner = place.removesuffix(".base_layer")
        if owner != place and owner in layers:
            yield f"{owner}.{last}", tensor
        elif not any(name.startswith(f"{layer}.lora_") for layer in layers):
            yield name, tensor


def alone(module: nn.Module, *, part: str) -> dict[str, Tensor]:
    """The adapters as diffusers' `load_lora_weights` reads them, scale and all within B.

    Args:
        part: of the pipeline, `unet` or `transformer`.
    """
    found: dict[str, Tensor] = {}
    for name, layer in adapted(module):
        scale = layer.scaling[NAME]
        found[f"{part}.{name}.lora_A.weight"] = layer.lora_A[NAME].weight.detach().clone()
        found[f"{part}.{name}.lora_B.weight"] = scale * layer.lora_B[NAME].weight.detach()
    return found


def adapted(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers with adapters, by name."""
    for name, layer in module.named_modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
            yield name, layer
