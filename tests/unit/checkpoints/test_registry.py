"""The nine names, and what their addresses say."""

from __future__ import annotations

import dataclasses

import pytest

from clip.checkpoints.registry import OPENAI_LICENCE, OPENAI_MODELS, RemoteModel, sha256_in_url

# As in openai/CLIP clip/clip.py, in full, so that a slip in how addresses are put together shows.
URLS = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599/RN101.pt",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd/RN50x4.pt",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa/RN50x16.pt",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c/RN50x64.pt",
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
}


def test_models_are_openais_in_openais_order() -> None:
    base = "https://openaipublic.azureedge.net/clip/models/"
    assert [(name, model.url) for name, model in OPENAI_MODELS.items()] == [(n, base + u) for n, u in URLS.items()]


@pytest.mark.parametrize("model", OPENAI_MODELS.values(), ids=lambda model: model.name)
def test_each_address_carries_its_hash_and_file_name(model: RemoteModel) -> None:
    assert OPENAI_MODELS[model.name] is model
    assert sha256_in_url(model.url) == model.sha256
    assert model.url.endswith("/" + model.filename)
    assert model.licence == OPENAI_LICENCE
    assert 200 < model.size_mb < 1500


def test_remote_models_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        OPENAI_MODELS["RN50"].url = "https://elsewhere.example/"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("url", "sha256"),
    [
        (f"https://host.example/{'AB' * 32}/model.pt", "ab" * 32),
        (f"https://host.example/{'ab' * 32}", None),
        (f"https://host.example/{'ab' * 31}/model.pt", None),
        (f"https://host.example/{'ab' * 33}/model.pt", None),
        (f"https://host.example/{'ab' * 32}/deeper/model.pt", None),
        ("https://host.example/model.pt", None),
    ],
)
def test_a_hash_is_read_only_from_the_element_before_the_name(url: str, sha256: str | None) -> None:
    assert sha256_in_url(url) == sha256
