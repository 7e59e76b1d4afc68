"""A denoiser in diffusers' format: which there are, how each was trained, and what each has to be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

    from diffusion.config import TimesConfig
    from diffusion.denoiser import Denoiser
    from diffusion.latents import LatentStatistics
    from diffusion.networks.foreign import Foreign
    from diffusion.noise import Schedule
    from diffusion.preconditioning import Preconditioning
    from diffusion.times import Times

UNET, PLAIN, DIT = "UNet2DConditionModel", "UNet2DModel", "DiTTransformer2DModel"
SD3, FLUX = "SD3Transformer2DModel", "FluxTransformer2DModel"
CLASSES = (UNET, PLAIN, DIT, SD3, FLUX)
FLOWS = (SD3, FLUX)
MISSING = "A denoiser of diffusers needs diffusers and peft: pip install 'latentmill[diffusers]'."
ENCODERS = {
    UNET: "its CLIP's (`kind: transformers`, `pooled: own`, `padded: true`; of SDXL two, `join: channels`, "
    "`layer: -2`)",
    SD3: "its two CLIPs' and its T5's (`kind: several`, `join: tokens`, each `padded: true`)",
    FLUX: "its CLIP's and its T5's (`kind: several`, `join: last`, each `padded: true`)",
}
"""Which text encoder's vectors each reads."""
LEFT_OUT = ("_name_or_path", "_diffusers_version", "_use_default_values")
"""Of a config.json: what decides nothing."""


@dataclass(frozen=True, kw_only=True)
class DiffusersNetwork:
    """What a snapshot's record says of a denoiser in diffusers' format, and how it is built.

    Raises:
        ValueError: of another class, or trained in a way that is not supported.
    """

    kind: Literal["diffusers"] = "diffusers"
    settings: dict[str, Any]
    """Of its config.json."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """Of its pipeline's scheduler_config.json; empty where there is none."""
    zeros: bool = False
    """Whether it was trained to see zeros for a caption that is absent (SDXL)."""
    tokens: int | None = None
    """Of a caption, always so many; None where captions differ."""
    factor: int = 8
    """Px a latent."""
    guidance: float = 3.5
    """What a FLUX that was distilled from a guided one is told."""

    def __post_init__(self) -> None:
        if self.name not in CLASSES:
            raise ValueError(f"A denoiser of class {self.name} is not supported; {', '.join(CLASSES)} are.")
        if self.settings.get("addition_embed_type") not in (None, "text_time"):
            told = self.settings["addition_embed_type"]
            raise ValueError(f"addition_embed_type is {told!r}; only 'text_time' (SDXL) is supported.")
        self.path()

    @property
    def name(self) -> str:
        """Of diffusers' class."""
        return str(self.settings.get("_class_name"))

    @property
    def transformer(self) -> bool:
        return self.name in (DIT, *FLOWS)

    @property
    def flow(self) -> bool:
        """Whether it was trained on the straight path."""
        return self.name in FLOWS

    @property
    def chain(self) -> int | None:
        """Timesteps that it was trained on."""
        return None if self.flow else int(self.scheduler.get("num_train_timesteps", 1000))

    @property
    def classes(self) -> int:
        """That it knows; a last one that is for images without is not counted."""
        count = {PLAIN: "num_class_embeds", DIT: "num_embeds_ada_norm"}.get(self.name)
        default = 1000 if self.name == DIT else 0
        return int((self.settings.get(count) or default) if count else 0)

    @property
    def pooled_width(self) -> int | None:
        """Of the captions' pooled vector; None where it reads none."""
        if self.name in FLOWS:
            return int(self.settings.get("pooled_projection_dim", 2048 if self.name == SD3 else 768))
        if self.sized:
            told = self.settings.get("projection_class_embeddings_input_dim") or 0
            return int(told) - 6 * int(self.settings.get("addition_time_embed_dim") or 0)
        return None

    @property
    def text_width(self) -> int | None:
        """Of the captions' token states; None where it reads none."""
        if self.name in FLOWS:
            return int(self.settings.get("joint_attention_dim", 4096))
        if self.name != UNET:
            return None
        width = self.settings.get("cross_attention_dim", 1280)
        return int(width[0] if isinstance(width, (list, tuple)) else width)

    @property
    def sized(self) -> bool:
        """Whether it is told the pooled vector and sizes, as SDXL."""
        return self.settings.get("addition_embed_type") == "text_time"

    @property
    def channels(self) -> int:
        """Of its latents."""
        default = {UNET: 4, PLAIN: 3, DIT: 4, SD3: 16, FLUX: 64}[self.name]
        count = int(self.settings.get("in_channels", default))
        return count // 4 if self.name == FLUX else count

    @property
    def multiple(self) -> int:
        """Of which the sides of its latents must be."""
        if self.name == FLUX:
            return 2
        if self.transformer:
            return int(self.settings.get("patch_size", 2))
        return 2 ** (len(self.settings.get("block_out_channels") or range(4)) - 1)

    @property
    def variances(self) -> tuple[str, list[int]] | None:
        """The layer, and its rows, with which it tells learned variances beside what it predicts (Nichol and
        Dhariwal, 2021, section 3.1), as DiT does; None where it tells none."""
        told = int(self.settings.get("out_channels") or 0)
        if self.flow or told <= self.channels:
            return None
        if self.name == DIT:
            rows = range(int(self.settings.get("patch_size", 2)) ** 2 * told)
            return "proj_out_2", [row for row in rows if row % told >= self.channels]
        return "conv_out", list(range(self.channels, told))

    def path(self) -> tuple[Schedule, Preconditioning]:
        """The noise that it was trained with, and what it predicts.

        Raises:
            ValueError: its scheduler is missing, or has settings that are not supported.
        """
        from diffusion.noise import RectifiedFlow
        from diffusion.preconditioning import Clean, FlowVelocity, Noise, Velocity

        if self.flow:
            return RectifiedFlow(), FlowVelocity()
        if not self.scheduler:
            raise ValueError(
                f"{self.name} does not say how it was trained: name the whole pipeline's folder, whose "
                "scheduler does, or put its scheduler_config.json beside the config.json."
            )
        if str(self.scheduler.get("_class_name")).startswith("FlowMatch"):
            raise ValueError(f"{self.name} with a {self.scheduler['_class_name']} is not supported.")
        predicted = str(self.scheduler.get("prediction_type", "epsilon"))
        known = {"epsilon": Noise, "v_prediction": Velocity, "sample": Clean}
        if predicted not in known:
            raise ValueError(f"prediction_type is {predicted!r}; only {', '.join(known)} are supported.")
        return schedule(self.scheduler), known[predicted]()

    def denoiser(self, network: Any) -> Denoiser:
        """The network with the preconditioning that it was trained with."""
        from diffusion.denoiser import Denoiser

        path, preconditioning = self.path()
        return Denoiser(network, schedule=path, preconditioning=preconditioning)

    def times(self, wanted: TimesConfig) -> Times:
        """Of its training: `wanted`, on the timesteps of its chain if it has one. There the default is not
        the middle, where a straight path's velocity is hardest to tell, but all of them alike."""
        from diffusion.config import LogitNormalConfig, UniformConfig
        from diffusion.times import Chained

        if self.chain is None:
            return wanted.build()
        chosen = UniformConfig() if wanted == LogitNormalConfig() else wanted
        return Chained(times=chosen.build(), steps=self.chain)

    def statistics(self, vae: Mapping[str, Any], channels: int) -> LatentStatistics:
        """How its latents are scaled, by the config.json of its autoencoder; of pixels, not at all.

        As its pipeline does: only those of SD3 and FLUX look at a shift, and SDXL's at each channel's own.
        """
        from diffusion.latents import LatentStatistics

        scale = float(vae.get("scaling_factor") or 1.0)
        mean, std = [float((self.flow and vae.get("shift_factor")) or 0.0)] * channels, [1.0] * channels
        if self.sized and vae.get("latents_mean") and vae.get("latents_std"):
            mean, std = vae["latents_mean"], vae["latents_std"]
        return LatentStatistics(mean=tuple(map(float, mean)), std=tuple(s / scale for s in map(float, std)))

    def check(self, *, channels: int, classes: int, text_width: int | None, pooled_width: int | None) -> None:
        """`ValueError` where data are not what the network takes; one line that says what it takes."""
        if channels != self.channels:
            raise ValueError(
                f"{self.name} takes latents of {self.channels} channels, and these have {channels}: encode "
                "with the autoencoder of its pipeline."
            )
        if classes > self.classes:
            known = f"knows {self.classes} classes" if self.classes else "knows no classes"
            raise ValueError(f"{self.name} {known}, and `images` has {classes}: leave `images` out.")
        if self.text_width is None and text_width is not None:
            raise ValueError(f"{self.name} reads no captions: leave `text` out.")
        own = self.pooled_width
        if self.text_width != text_width or (own is not None and own != (pooled_width or text_width)):
            pooled = f" and pooled vectors of {own}" if own is not None else ""
            given = "there are none" if text_width is None else f"these have {text_width} and {pooled_width}"
            raise ValueError(
                f"{self.name} reads token states of {self.text_width}{pooled}, and {given}: "
                f"embed with {ENCODERS[self.name]}."
            )

    def module(self) -> nn.Module:
        """Of diffusers' class, with weights that are not set to anything meant.

        `ValueError` where diffusers is not installed, or does not take the settings.
        """
        made = known_class(self.name)
        settings = {k: v for k, v in self.settings.items() if k not in ("_class_name", *LEFT_OUT)}
        try:
            return made.from_config(settings)
        except (TypeError, ValueError, KeyError, IndexError, ArithmeticError) as error:
            line = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"diffusers makes no {self.name} of these settings: {line}") from error

    def around(self, module: nn.Module, *, classes: int = 0) -> Foreign:
        """Our signature around a module of diffusers' class, for data of so many classes."""
        from diffusion.networks import foreign

        foreign.steady(module)
        given: dict[str, Any] = {"channels": self.channels}
        chained = {**given, "chain": self.chain}
        match self.name:
            case "UNet2DConditionModel":
                told = {"tokens": self.tokens, "factor": self.factor, "sized": self.sized}
                return foreign.ConditionedUNet(module, **chained, **told)
            case "UNet2DModel":
                # Its class behind those of the data, if there is one, is for images without.
                absent = classes < self.classes
                return foreign.PlainUNet(module, **chained, classes=self.classes - absent, absent=absent)
            case "DiTTransformer2DModel":
                return foreign.ClassTransformer(module, **chained, classes=self.classes)
            case "SD3Transformer2DModel":
                return foreign.StableDiffusion3(module, **given, tokens=self.tokens)
            case _:
                told = self.guidance if self.settings.get("guidance_embeds") else None
                return foreign.Flux(module, **given, tokens=self.tokens, guidance=told)

    def build(
        self,
        *,
        channels: int,
        size: int,
        classes: int = 0,
        text_width: int | None = None,
        pooled_width: int | None = None,
        low_channels: int = 0,
    ) -> Foreign:
        """As our own networks' configs; `ValueError` for data that it does not take."""
        if low_channels:
            raise ValueError(f"{self.name} is told no small image: leave `low_resolution` out.")
        if size % self.multiple:
            raise ValueError(
                f"{self.name} takes latents of a multiple of {self.multiple} a side, not {size}."
            )
        self.check(channels=channels, classes=classes, text_width=text_width, pooled_width=pooled_width)
        return self.around(self.module(), classes=classes)


def schedule(settings: Mapping[str, Any]) -> Schedule:
    """The chain of a scheduler of the DDPM family, by its config, with diffusers' defaults."""
    from diffusion.noise import VariancePreserving

    steps = int(settings.get("num_train_timesteps", 1000))
    ends = {"first": settings.get("beta_start", 1e-4), "last": settings.get("beta_end", 0.02)}
    name = str(settings.get("beta_schedule", "linear"))
    if settings.get("trained_betas") is not None:
        made = VariancePreserving(settings["trained_betas"])
    elif name == "linear":
        made = VariancePreserving.linear(steps, **ends)
    elif name == "scaled_linear":
        made = VariancePreserving.scaled_linear(steps, **ends)
    elif name == "squaredcos_cap_v2":
        made = VariancePreserving.cosine(steps)
    else:
        raise ValueError(
            f"beta_schedule is {name!r}; linear, scaled_linear and squaredcos_cap_v2 are supported."
        )
    return made.zero_terminal() if settings.get("rescale_betas_zero_snr") else made


def denoiser_of(config: Any, network: Any) -> Denoiser:
    """A network of ours or of diffusers with the preconditioning that it was trained with."""
    from diffusion.denoiser import Denoiser

    return config.denoiser(network) if config.kind == "diffusers" else Denoiser(network)


def times_of(config: Any, wanted: TimesConfig) -> Times:
    """Times of a training: `wanted`, or what stands for them with a network of diffusers."""
    return config.times(wanted) if config.kind == "diffusers" else wanted.build()


def weights_of(config: Any, network: nn.Module) -> dict[str, Tensor]:
    """Of a snapshot; those of a network of diffusers by its own names, adapters merged."""
    return config.weights(network) if config.kind == "diffusers" else network.state_dict()


def adapters_of(config: Any, network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Adapters alone, by the file that diffusers looks for; empty without."""
    return config.adapters(network) if config.kind == "diffusers" else {}


def known_class(name: str) -> Any:
    """diffusers' class of that name. `ValueError` where diffusers is not installed, or has none."""
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(MISSING) from error
    made = getattr(diffusers, name, None)
    if made is None:
        raise ValueError(f"diffusers {diffusers.__version__} has no {name}: install a newer one.")
    return made
