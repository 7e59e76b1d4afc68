"""What a recipe can choose in the core: frozen dataclasses that load without torch and build with it."""

from diffusion.config.autoencoders import AutoencoderConfig, IdentityAutoencoderConfig, KLAutoencoderConfig
from diffusion.config.networks import DiTConfig, NetworkConfig, UNetConfig
from diffusion.config.sampling import EulerConfig, GuidanceConfig, HeunConfig, SamplerConfig
from diffusion.config.training import (
    LogitNormalConfig,
    LowResolutionConfig,
    OptimizationConfig,
    TimesConfig,
    UniformConfig,
)

__all__ = [
    "AutoencoderConfig",
    "DiTConfig",
    "EulerConfig",
    "GuidanceConfig",
    "HeunConfig",
    "IdentityAutoencoderConfig",
    "KLAutoencoderConfig",
    "LogitNormalConfig",
    "LowResolutionConfig",
    "NetworkConfig",
    "OptimizationConfig",
    "SamplerConfig",
    "TimesConfig",
    "UNetConfig",
    "UniformConfig",
]
