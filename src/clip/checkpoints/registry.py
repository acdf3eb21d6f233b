"""Names of the models that OpenAI published: where each lies, and the SHA-256 that it must have.

The list is that of openai/CLIP's ``clip/clip.py``, in its order. Only names and addresses live here;
``download.py`` brings the bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["OPENAI_LICENCE", "OPENAI_MODELS", "RemoteModel", "sha256_in_url"]

OPENAI_LICENCE = (
    "MIT, the licence of the openai/CLIP repository, which names no other for the weights. Its model card intends the "
    "models for research, calls any deployed use out of scope, advises against other uses without testing for them, "
    "excludes surveillance and face recognition always, and limits use to English: "
    "https://github.com/openai/CLIP/blob/main/model-card.md"
)
"""What is known about the terms of OpenAI's weights; a pointer to the source, not legal advice."""

_OPENAI_BASE = "https://openaipublic.azureedge.net/clip/models"


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteModel:
    """A checkpoint that can be fetched by name."""

    name: str
    url: str
    sha256: str
    """64 lower-case hexadecimal digits, of the whole file."""
    size_mb: int
    """Megabytes (10⁶) of parameters, computed from their shapes; the file is slightly larger. To show, not to check."""
    licence: str

    @property
    def filename(self) -> str:
        """The last element of the address, under which OpenAI's package caches the file too."""
        return self.url.rsplit("/", 1)[-1]


def _openai(name: str, sha256: str, size_mb: int) -> RemoteModel:
    filename = name.replace("/", "-").replace("@", "-") + ".pt"
    url = f"{_OPENAI_BASE}/{sha256}/{filename}"
    return RemoteModel(name=name, url=url, sha256=sha256, size_mb=size_mb, licence=OPENAI_LICENCE)


OPENAI_MODELS: dict[str, RemoteModel] = {
    model.name: model
    for model in (
        _openai("RN50", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", 255),
        _openai("RN101", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599", 291),
        _openai("RN50x4", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd", 421),
        _openai("RN50x16", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa", 660),
        _openai("RN50x64", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c", 1352),
        _openai("ViT-B/32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", 353),
        _openai("ViT-B/16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", 350),
        _openai("ViT-L/14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", 932),
        _openai("ViT-L/14@336px", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", 933),
    )
}
"""OpenAI's nine models by name, in the order of ``available_models()``."""


def sha256_in_url(url: str) -> str | None:
    """The SHA-256 that an address of OpenAI's kind carries as the path element before the file's name, or None."""
    match = re.search(r"/([0-9a-fA-F]{64})/[^/]+$", url)
    return match[1].lower() if match else None
