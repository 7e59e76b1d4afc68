"""Diffusion models in pure torch: a schedule, a denoiser and a sampler compose into a generative model.

Names are loaded when they are first used, so that the configurations need no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "config": (
        "AutoencoderConfig DDIMConfig DDPMConfig DPMConfig DeepCompressionAutoencoderConfig "
        "DeepCompressionLevel DiTConfig EulerConfig GuidanceConfig HeunConfig IdentityAutoencoderConfig "
        "KLAutoencoderConfig LogitNormalConfig NetworkConfig OptimizationConfig PredictorCorrectorConfig "
        "SamplerConfig SpatialAutoencoderConfig TimesConfig TinyAutoencoderConfig UNetConfig UniPCConfig "
        "UniformConfig"
    ),
    "noise": "RectifiedFlow Schedule VarianceExploding VariancePreserving",
    "times": "LogNormal LogitNormal Times Uniform",
    "preconditioning": "EDM Clean FlowVelocity Noise Preconditioning Velocity",
    "conditioning": "Conditioning",
    "denoiser": "AnyDenoiser Denoiser On",
    "guidance": "Autoguidance ClassifierFree Guidance",
    "latents": "LatentStatistics LatentSums Moments",
    "alignment": "Aligned",
    "losses": "MinSNR Output Weighting denoising flow_matching",
    "ema": "EMA Profile combined reconstruction",
    "optimizers": "Muon",
    "compilation": "compile_blocks",
    "training": "Progress TrainingState fit",
    "variance": "LearnedVariance hybrid vlb",
    "inversion": "invert",
    "samplers.sampler": "Sampler",
    "samplers.spacing": "Even Karras Leading LogSNR Spacing",
    "samplers.euler": "Euler",
    "samplers.heun": "Heun",
    "samplers.dpm": "DPM",
    "samplers.unipc": "UniPC",
    "samplers.ddim": "DDIM",
    "samplers.ddpm": "DDPM",
    "samplers.langevin": "AnnealedLangevin",
    "samplers.predictor_corrector": "PredictorCorrector",
    "samplers.runge_kutta": "RungeKutta",
    "operators": "Downsample Mask Matrix Operator",
    "measured": "Measured",
    "editing.inpainting": "RePaint",
    "editing.image_to_image": "SDEdit",
    "editing.denoising": "denoise draw_denoised",
    "likelihood": "Rademacher bits_per_dimension dequantised log_likelihood",
    "anomaly": "GaussianFit MeanDeviation denoising_errors score_norms",
    "networks.dit": "DiT",
    "networks.unet": "UNet",
    "networks.flops": "flops",
    "networks.routing": "kept_tokens",
    "autoencoders.autoencoder": "Autoencoder",
    "autoencoders.deep_compression": "DeepCompressionAutoencoder",
    "autoencoders.identity": "IdentityAutoencoder",
    "autoencoders.kl": "KLAutoencoder",
    "autoencoders.spatial": "SpatialAutoencoder",
    "autoencoders.tiny": "TinyAutoencoder",
    "metrics.features": "EfficientNetLite0",
    "metrics.auroc": "auroc",
    "metrics.estimate": "Estimate",
    "metrics.frechet": "FeatureStatistics frechet_distance frechet_estimate",
    "metrics.kernel": "kernel_distance",
    "metrics.neighbours": "nearest",
    "metrics.precision_recall": "precision_recall",
}
_HOMES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names.split()}
__all__ = [*_HOMES]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
