"""What a recipe can choose in the core: frozen dataclasses that load without torch and build with it."""

from diffusion.config.autoencoders import (
    AutoencoderConfig,
    IdentityAutoencoderConfig,
    KLAutoencoderConfig,
    SpatialAutoencoderConfig,
    TinyAutoencoderConfig,
)
from diffusion.config.deep_compression import DeepCompressionAutoencoderConfig, DeepCompressionLevel
from diffusion.config.networks import DiTConfig, NetworkConfig, UNetConfig
from diffusion.config.sampling import (
    DDIMConfig,
    DDPMConfig,
    DPMConfig,
    EulerConfig,
    GuidanceConfig,
    HeunConfig,
    PredictorCorrectorConfig,
    SamplerConfig,
    UniPCConfig,
)
from diffusion.config.training import (
    AlignmentConfig,
    LogitNormalConfig,
    LowResolutionConfig,
    OptimizationConfig,
    TimesConfig,
    UniformConfig,
)

__all__ = [
    "AlignmentConfig",
    "AutoencoderConfig",
    "DDIMConfig",
    "DDPMConfig",
    "DPMConfig",
    "DeepCompressionAutoencoderConfig",
    "DeepCompressionLevel",
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
    "PredictorCorrectorConfig",
    "SamplerConfig",
    "SpatialAutoencoderConfig",
    "TimesConfig",
    "TinyAutoencoderConfig",
    "UNetConfig",
    "UniPCConfig",
    "UniformConfig",
]
