"""A whole pipeline's folder in diffusers' format, taken into a store as a model that draws at once."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from cluster.storage import Storage
from pipelines.pretrained.autoencoder_folder import RESOLUTION, WEIGHTS, AutoencoderFolder
from pipelines.pretrained.denoiser import DIT, FLUX, PLAIN, SD3, UNET, DiffusersNetwork
from pipelines.pretrained.denoiser_folder import DenoiserFolder
from pipelines.pretrained.folder import PART, PIPELINE, DiffusersFolder, settings
from pipelines.pretrained.hub import ENCODER
from pipelines.pretrained.text_encoders import SDXL, called, kind_of, read_by
from pipelines.shards import canonical
from pipelines.stage import jsonable

SCALES = {UNET: 7.5, SDXL: 5.0, DIT: 4.0, SD3: 7.0, FLUX: 1.0, PLAIN: 1.0}
"""Guidance, as the pipelines have it by default. FLUX is told of its own in another way."""
STEPS, DISTILLED = 28, 4
"""Of the sampler; the second of a FLUX that was distilled to few (schnell)."""
MICRO_BATCH = 4
"""Captions of a forward call of the text encoders."""


@dataclass(frozen=True, kw_only=True)
class PipelineFolder(DiffusersFolder):
    """Denoiser, autoencoder, scheduler and text encoders, with what else a model_index.json says; `files` are
    that one, and those of the text encoders and their tokenizers."""

    denoiser: DenoiserFolder
    autoencoder: AutoencoderFolder | None
    """None of a pipeline on pixels."""
    index: Mapping[str, Any]
    """model_index.json."""

    @staticmethod
    def of(storage: Storage, name: str) -> PipelineFolder:
        """The folder of a whole pipeline.

        Raises:
            ValueError: its parts are not supported, cannot be read, or do not belong together; says what to
                do.
        """
        index = settings(storage.read(PIPELINE), name)
        denoiser = DenoiserFolder.of(storage, name)
        vae = AutoencoderFolder.of(storage, name) if _part(index, PART) else None
        found = PipelineFolder(
            storage=storage, name=name, files=(), denoiser=denoiser, autoencoder=vae, index=index
        )
        found.check()
        folders = [
            f"{word}{behind}/"
            for behind in read_by(denoiser.network)
            for word in ("text_encoder", "tokenizer")
        ]
        files = [
            file
            for folder in folders
            for file in storage.list(folder)
            if any(fnmatch(file.removeprefix(folder), pattern) for pattern in ENCODER)
        ]
        return dataclasses.replace(found, files=(PIPELINE, *files))

    @property
    def read(self) -> tuple[str, ...]:
        return self.files

    @property
    def network(self) -> DiffusersNetwork:
        return self.denoiser.network

    @property
    def classes(self) -> list[str]:
        """Names of the classes; their numbers where it has none."""
        names: Mapping[str, Any] = self.index.get("id2label") or {}
        return [str(names.get(str(n), n)) for n in range(self.network.classes)]

    def check(self) -> None:
        kind, reads = str(self.index.get("_class_name")), read_by(self.network)
        for behind, wanted in reads.items():
            found = _part(self.index, f"text_encoder{behind}")
            if found != wanted:
                told = f"is a {found}" if found else "is not there"
                raise ValueError(
                    f"{self.name} is a {kind} whose text_encoder{behind} {told}, and is not drawn with: "
                    f"{self.network.name} is supported with {', '.join(reads.values())}."
                )
        known = {f"text_encoder{behind}" for behind in reads}
        foreign = [
            key for key in self.index if key.startswith(("text_encoder", "vqvae")) and key not in known
        ]
        more = next((key for key in foreign if _part(self.index, key)), None)
        if more is not None:
            raise ValueError(f"{self.name} is a {kind} with a {more}, which is not supported.")
        made = 3 if self.autoencoder is None else self.autoencoder.config().latent_channels
        if made != self.network.channels:
            raise ValueError(
                f"{self.name} is a {kind} whose {self.network.name} takes {self.network.channels} channels, "
                f"and of latents there are {made}: one that is shown more than noise is not supported."
            )

    def stamp(self) -> str | None:
        parts = [super().stamp(), self.denoiser.stamp()]
        parts += [] if self.autoencoder is None else [self.autoencoder.stamp()]
        return hashlib.sha256(canonical(parts)).hexdigest() if all(parts) else None

    def digest(self) -> str:
        parts = [self.denoiser, *([] if self.autoencoder is None else [self.autoencoder])]
        own = {file: digest for file, digest in self._own().items() if file != PIPELINE}
        return hashlib.sha256(
            canonical(["pipeline", self.classes, own, *(part.digest() for part in parts)])
        ).hexdigest()

    def digests(self) -> dict[str, str]:
        found = {**self._own(), **self.denoiser.digests()}
        return found if self.autoencoder is None else {**found, **self.autoencoder.digests()}

    def commit(self, target: Storage) -> dict[str, Any]:
        """Writes denoiser and autoencoder as they are adopted alone, and the text encoders' folders; gives
        the record of a snapshot that draws.

        Raises:
            ValueError: weights are not those that their config describes, or damaged.
        """
        from safetensors.torch import save

        from diffusion.config import IdentityAutoencoderConfig

        record, vae = self.denoiser.commit(target), self.autoencoder
        if vae is None:
            data = save({})
            target.put_if_absent(WEIGHTS, data)
            coder: dict[str, Any] = {"autoencoder": jsonable(IdentityAutoencoderConfig())}
            coder |= {"files": {WEIGHTS: hashlib.sha256(data).hexdigest()}}
        else:
            coder = vae.weights_to(target)
        files = {**record["files"], **coder["files"]}
        for file, digest in self._own().items():
            if file != PIPELINE:
                target.put_if_absent(file, self.storage.local(file))
                files[file] = digest
        text = self._text()
        network = dataclasses.replace(
            self.network, factor=self._factor, tokens=None if text is None else text["longest"]
        )
        side, channels = self._side, self.network.channels
        return {
            "task": "denoiser",
            "class": str(self.index.get("_class_name")),
            "network": jsonable(network),
            "autoencoder": coder["autoencoder"],
            "statistics": network.statistics({} if vae is None else vae.settings, channels).to_json(),
            "latent_shape": [channels, side, side],
            "resolution": side * self._factor,
            "classes": self.classes,
            "text": text,
            "caption": None,
            **({} if network.zeros or text is None else {"null": "encoded"}),
            "sampling": self._sampling(),
            "images_seen": None,
            "parameters": record["parameters"],
            "files": files,
        }

    @property
    def _factor(self) -> int:
        return 1 if self.autoencoder is None else self.autoencoder.config().factor

    @property
    def _side(self) -> int:
        """Of the latents that it was trained on; as its pipeline has it, or as the autoencoder was."""
        said = self.network.settings.get("sample_size")
        if said is None:
            return (
                RESOLUTION if self.autoencoder is None else self.autoencoder.resolution(self._factor)
            ) // (self._factor)
        return int(said[0] if isinstance(said, (list, tuple)) else said)

    def _own(self) -> dict[str, str]:
        return super().digests()

    def _text(self) -> dict[str, Any] | None:
        """What the snapshot says of its texts; the encoders' folders are those within it."""
        from pipelines.embedders.storing import kept_empty
        from pipelines.places import at_hand

        there, within = (called(self.network, p) for p in (f"{at_hand(self.storage.url)}/", ""))
        if there is None or within is None:
            return None
        encoder = there.build(micro_batch=MICRO_BATCH)
        (empty,) = encoder.encode([""])
        self.network.check(
            channels=self.network.channels,
            classes=0,
            text_width=encoder.width,
            pooled_width=encoder.pooled_width,
        )
        return {
            **dataclasses.asdict(within),
            "digest": there.identity(),
            "micro_batch": MICRO_BATCH,
            "width": encoder.width,
            "pooled_width": encoder.pooled_width,
            "longest": len(empty.states),
            "empty": kept_empty(empty),
        }

    def _sampling(self) -> dict[str, Any]:
        from diffusion.config import EulerConfig, GuidanceConfig

        few = self.network.name == FLUX and not self.network.settings.get("guidance_embeds")
        return {
            "sampler": jsonable(EulerConfig(steps=DISTILLED if few else STEPS, shift=self._shift())),
            "guidance": jsonable(GuidanceConfig(scale=SCALES[kind_of(self.network)])),
        }

    def _shift(self) -> float:
        """Of the times, as the scheduler has it; of one that shifts larger images further, for its own size
        (Esser et al., 2024, section 5.3.2, by the line that diffusers draws)."""
        if not self.network.flow:
            return 1.0
        said = self.network.scheduler
        if not said.get("use_dynamic_shifting"):
            return float(said.get("shift") or 1.0)
        low, high = float(said.get("base_shift", 0.5)), float(said.get("max_shift", 1.15))
        first, last = int(said.get("base_image_seq_len", 256)), int(said.get("max_image_seq_len", 4096))
        tokens = (self._side // 2) ** 2
        return math.exp(low + (high - low) * (tokens - first) / (last - first))


def _part(index: Mapping[str, Any], name: str) -> str | None:
    """Class of a part of a pipeline; None where it does without."""
    said = index.get(name)
    return said[1] if isinstance(said, list) and len(said) == 2 and said[1] else None
