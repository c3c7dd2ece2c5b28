"""Models by their Hugging Face ids: from the cache, without a network."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorasmith.core.errors import WeightsError
from lorasmith.models.files.hub import download_model, find_cached_model, is_model_id, select_files
from lorasmith.models.files.open import resolve_model_path
from lorasmith.models.load import load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of huggingface_hub, and no network."""
    from huggingface_hub import HfApi, constants

    def unreachable(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(HfApi, "model_info", unreachable)
    return tmp_path / "hub"


def put_in_cache(cache: Path, model: Path) -> Path:
    """Lay a model out as huggingface_hub keeps what it downloaded."""
    repo_folder = cache / "models--some--model"
    (repo_folder / "refs").mkdir(parents=True)
    (repo_folder / "refs" / "main").write_text(COMMIT)
    return shutil.copytree(model, repo_folder / "snapshots" / COMMIT)


def test_model_ids_are_recognised() -> None:
    assert is_model_id("stabilityai/stable-diffusion-xl-base-1.0")
    assert is_model_id("a/b")
    for name in ("", "model", "a/b/c", "../model", "./model", "/model", "a/", "~/x/y", "a b/c"):
        assert not is_model_id(name)


def test_cached_model_is_opened(cache: Path, tiny_model: Path) -> None:
    snapshot = put_in_cache(cache, tiny_model)
    assert resolve_model_path("some/model") == resolve_model_path(Path("some/model")) == snapshot
    assert load_model("some/model").default_size == 64


def test_folder_comes_before_a_model_id(
    cache: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_cache(cache, tiny_model)
    shutil.copytree(tiny_model, tmp_path / "some" / "model")
    monkeypatch.chdir(tmp_path)
    assert resolve_model_path("some/model") == Path("some/model")


def test_uncached_model_is_named_with_its_download_command(cache: Path) -> None:
    assert find_cached_model("some/model") is None
    with pytest.raises(WeightsError, match=r"no such id in the cache; .* some/model --download"):
        resolve_model_path("some/model")


def test_incomplete_download_names_the_missing_part(cache: Path, tiny_model: Path) -> None:
    shutil.rmtree(put_in_cache(cache, tiny_model) / "vae")
    with pytest.raises(WeightsError, match=r"missing part vae; copy or download") as caught:
        resolve_model_path("some/model")
    assert "`lorasmith model info some/model --download` fetches the rest" in str(caught.value)


FILES = [
    "model_index.json", "README.md", "v1-5.safetensors", "v1-5.ckpt", "safety_checker/config.json",
    "unet/config.json", "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/openvino_model.xml",
    "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.non_ema.safetensors",
    "text_encoder/config.json", "text_encoder/model.safetensors.index.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.fp16-00001-of-00001.safetensors", "text_encoder/flax_model.msgpack",
    "tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json",
]  # fmt: skip


def test_only_needed_files_are_selected() -> None:
    left = {
        "README.md", "v1-5.safetensors", "v1-5.ckpt", "safety_checker/config.json",
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/openvino_model.xml",
        "vae/diffusion_pytorch_model.non_ema.safetensors",
        "text_encoder/model.fp16-00001-of-00001.safetensors", "text_encoder/flax_model.msgpack",
    }  # fmt: skip
    assert select_files(FILES) == sorted(set(FILES) - left)


def test_download_requests_one_variant_of_one_revision(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    request: dict[str, Any] = {}

    def info(_: object, name: str) -> SimpleNamespace:
        siblings = [SimpleNamespace(rfilename=file) for file in FILES]
        return SimpleNamespace(siblings=siblings, sha=COMMIT)

    def snapshot(name: str, **options: Any) -> str:
        request.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert download_model("some/model") == tmp_path
    assert request == {
        "name": "some/model", "revision": COMMIT, "allow_patterns": select_files(FILES),
    }  # fmt: skip


def test_pickled_model_is_refused_before_the_download(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    kept = [
        file for file in FILES if not file.startswith("unet/") or file.endswith((".bin", ".json"))
    ]

    def info(_: object, name: str) -> SimpleNamespace:
        return SimpleNamespace(
            siblings=[SimpleNamespace(rfilename=file) for file in kept], sha=COMMIT
        )

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    with pytest.raises(WeightsError, match=r"unet/diffusion_pytorch_model\.bin is pickled"):
        download_model("some/model")


def test_impossible_download_is_explained(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import huggingface_hub

    with pytest.raises(WeightsError, match="only Hugging Face ids"):
        download_model("models/a/b")

    def no_network(*_: object) -> None:
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_network)
    with pytest.raises(WeightsError, match="model some/model: cannot be downloaded: no route"):
        download_model("some/model")

    def without_files(*_: object) -> SimpleNamespace:
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename="a.safetensors")], sha=COMMIT)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", without_files)
    with pytest.raises(WeightsError, match="not in diffusers' folder layout"):
        download_model("some/model")
