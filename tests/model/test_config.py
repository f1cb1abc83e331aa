import pytest
import torch

from puna.core.errors import UsageError
from puna.model import SIZES, Llama, LlamaConfig, llama_config

PUBLISHED = {  # exact counts of the model cards
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "llama3-8b": 8_030_261_248,
    "llama3.1-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-70b": 70_553_706_496,
    "llama3.3-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
}
SMALL = {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48}


def test_every_published_size_has_its_exact_parameter_count() -> None:
    assert set(PUBLISHED) == set(SIZES)
    for size, expected in PUBLISHED.items():
        with torch.device("meta"):
            model = Llama(llama_config(size))
        assert sum(parameter.numel() for parameter in model.parameters()) == expected, size
        assert llama_config(size).n_params() == expected, size


@pytest.mark.parametrize("size", ["llama3.1-8b", "llama3.3-70b", "llama3.1-405b"])
def test_later_models_stretch_rope_by_eight_to_128k(size: str) -> None:
    config = llama_config(size)
    assert config.rope_scaling is not None
    assert (config.rope_scaling.factor, config.context) == (8, 131_072)


def test_flops_per_token_is_six_per_multiplying_weight_plus_attention() -> None:
    config = LlamaConfig.parse(SMALL, where="test")
    model = Llama(config)
    weights = sum(p.numel() for n, p in model.named_parameters() if "proj" in n or "head" in n)
    assert config.flops_per_token(10) == 6 * weights + 12 * 2 * 4 * 8 * 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ({"dim": 30}, "dim 30 is not a multiple of n_heads 4"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"n_layer": 2}, "unknown key 'n_layer': did you mean 'n_layers'?"),
        ({"dim": "wide"}, "'dim' is 'wide'"),
        ({"ffn_dim": 0}, "'ffn_dim' is 0"),
    ],
)
def test_a_wrong_config_names_field_and_mend(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        LlamaConfig.parse(SMALL | changes, where="config.json")
    assert str(error.value).startswith("config.json: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_size_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown model size 'llama4'.*llama3\.3-70b"):
        llama_config("llama4")


def test_a_row_beyond_the_context_is_refused() -> None:
    model = Llama(LlamaConfig.parse(SMALL | {"context": 16}, where="test"))
    with pytest.raises(UsageError, match="17 tokens do not fit this model's context of 16"):
        model(torch.zeros(1, 17, dtype=torch.int64))
