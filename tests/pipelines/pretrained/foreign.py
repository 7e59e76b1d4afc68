"""Foreign weights: small autoencoders by diffusers' own classes, and a cache and a server as the hub has."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
REPO = "someone/some-vae"
SETTINGS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 64,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
    },
    "AutoencoderDC": {
        "latent_channels": 4,
        "attention_head_dim": 8,
        "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": (8, 16),
        "decoder_block_out_channels": (8, 16),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), (5,)),
        "decoder_qkv_multiscales": ((), (5,)),
        "scaling_factor": 0.4,
    },
}


def model(name: str = "AutoencoderKL", seed: int = 0, **settings: Any) -> Any:
    """An autoencoder of diffusers, with weights that are not those it starts with."""
    import diffusers

    torch.manual_seed(seed)
    made = getattr(diffusers, name)(**SETTINGS[name] | settings).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return made


def save(made: Any, folder: Path, **options: Any) -> Path:
    made.save_pretrained(folder, **options)
    return folder


def moments(made: Any, images: torch.Tensor) -> torch.Tensor:
    """Mean, then standard deviation where there is one."""
    with torch.no_grad():
        found = made.encode(images)
        if hasattr(found, "latent_dist"):
            return torch.cat([found.latent_dist.mean, found.latent_dist.std], dim=1)
        return found.latents if hasattr(found, "latents") else found.latent


def hub_cache(folder: Path, files: Path, *, inner: str = "", commit: str = COMMIT, repo: str = REPO) -> Path:
    """A cache as huggingface_hub lays it out: blobs by digest, links to them in a folder a commit."""
    place = folder / f"models--{repo.replace('/', '--')}"
    (place / "blobs").mkdir(parents=True, exist_ok=True)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(commit)
    for path in sorted(p for p in files.rglob("*") if p.is_file()):
        blob = place / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        link = place / "snapshots" / commit / inner / path.relative_to(files)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder


@contextmanager
def hub_server(files: Path, *, commit: str = COMMIT, repo: str = REPO) -> Iterator[tuple[str, list[str]]]:
    """Address of what answers as the hub does for one repository, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            start = f"/{repo}/resolve/{commit}/"
            if self.path.startswith(f"/api/models/{repo}/tree/{commit}"):
                listed = [
                    {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
                    for path in files.iterdir()
                ]
                self._send(200, json.dumps(listed).encode(), body=True)
            elif self.path.startswith(f"/api/models/{repo}"):
                self._send(200, f'{{"id": "{repo}", "sha": "{commit}"}}'.encode(), body=True)
            elif not self.path.startswith(f"/{repo}/"):
                self._send(404, b"", code="RepoNotFound")
            elif not self.path.startswith(start):
                self._send(404, b"", code="RevisionNotFound")
            elif not (files / self.path.removeprefix(start)).is_file():
                self._send(404, b"", code="EntryNotFound")
            else:
                self._send(200, (files / self.path.removeprefix(start)).read_bytes(), body=body)

        def _send(self, status: int, data: bytes, *, code: str = "", body: bool = False) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
