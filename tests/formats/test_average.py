from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from puna.core.errors import UsageError
from puna.formats import average_models, load_model, save_model
from puna.model import Llama
from puna.tokenizer import Tokenizer

Build = Callable[..., Llama]


@pytest.fixture
def models(tiny_llama: Build, tokenizer: Tokenizer, tmp_path: Path) -> list[Path]:
    """Three models of one shape; the second in several files."""
    folders = []
    for number, shard_bytes in enumerate((10**9, 50_000, 10**9)):
        model = tiny_llama()
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        folders.append(tmp_path / f"model-{number}")
        save_model(folders[-1], model, tokenizer, max_shard_bytes=shard_bytes)
    return folders


def state(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder)[0].state_dict())


@pytest.mark.parametrize(
    ("order", "weights", "shares"),
    [
        ((0, 1, 2), None, (1 / 3, 1 / 3, 1 / 3)),
        ((1, 0), (3.0, 1.0), (0.75, 0.25)),
    ],
    ids=["equal weights", "given weights, the first in several files"],
)
def test_every_weight_is_the_mean(
    models: list[Path],
    tmp_path: Path,
    order: tuple[int, ...],
    weights: tuple[float, ...] | None,
    shares: tuple[float, ...],
) -> None:
    folders = [models[n] for n in order]
    average_models(folders, tmp_path / "mean", weights)
    states = [state(folder) for folder in folders]
    for name, found in state(tmp_path / "mean").items():
        parts = [s * each[name].double() for s, each in zip(shares, states, strict=True)]
        torch.testing.assert_close(found, sum(parts).float(), rtol=1e-6, atol=0)  # fp32 rounds once
    files = [sorted(item.name for item in f.iterdir()) for f in (folders[0], tmp_path / "mean")]
    assert files[0] == files[1]


def test_equal_models_average_to_themselves_bit_for_bit(models: list[Path], tmp_path: Path) -> None:
    average_models([models[0]] * 3, tmp_path / "mean")
    for name, found in state(tmp_path / "mean").items():
        assert torch.equal(found, state(models[0])[name]), name


def test_bf16_stays_bf16_and_is_rounded_once(
    tiny_llama: Build, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = tiny_llama().bfloat16()
    save_model(tmp_path / "a", model, tokenizer)
    weight = model.model.norm.weight
    with torch.no_grad():
        weight.fill_(1.0)
        save_model(tmp_path / "b", model, tokenizer)
        weight.fill_(1.0078125)  # the next number of bf16: thirds of the two have to be rounded
        save_model(tmp_path / "c", model, tokenizer)
    average_models([tmp_path / "b", tmp_path / "b", tmp_path / "c"], tmp_path / "low")
    average_models([tmp_path / "b", tmp_path / "c", tmp_path / "c"], tmp_path / "high")
    for name, value in (("low", 1.0), ("high", 1.0078125)):
        found = load_model(tmp_path / name, dtype=torch.bfloat16)[0].model.norm.weight
        assert found.tolist() == [value] * len(found)
    assert '"torch_dtype": "bfloat16"' in (tmp_path / "low" / "config.json").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ffn_dim": 128}, r"down_proj\.weight' has shapes \(64, 96\) and \(64, 128\)"),
        ({"n_layers": 3}, r"only one has the tensor 'model\.layers\.2"),
        ({"rope_theta": 1e4}, r"their config\.json differ"),
        ({"tie_embeddings": True}, "only one has the tensor 'lm_head.weight'"),
    ],
)
def test_models_of_other_shapes_are_refused_and_nothing_is_left(
    models: list[Path],
    tiny_llama: Build,
    tokenizer: Tokenizer,
    tmp_path: Path,
    changes: dict[str, float],
    message: str,
) -> None:
    save_model(tmp_path / "other", tiny_llama(**changes), tokenizer)
    with pytest.raises(UsageError, match=message) as error:
        average_models([models[0], tmp_path / "other"], tmp_path / "mean")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mean").exists()


def test_other_tokenizers_are_refused(
    models: list[Path], tiny_llama: Build, texts: list[str], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.train([text[::-1] for text in texts] * 4, vocab_size=384, n_special=32)
    save_model(tmp_path / "other", tiny_llama(), tokenizer)
    with pytest.raises(UsageError, match="their tokenizers differ"):
        average_models([models[0], tmp_path / "other"], tmp_path / "mean")


@pytest.mark.parametrize(
    ("n", "weights", "message"),
    [
        (1, None, "two models or more, not of 1"),
        (2, (1.0,), "1 weights for 2 models"),
        (2, (1.0, -1.0), "the weight -1.0 of a model"),
    ],
)
def test_weights_that_make_no_average_are_refused(
    models: list[Path], tmp_path: Path, n: int, weights: tuple[float, ...] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        average_models(models[:n], tmp_path / "mean", weights)
