"""Adapters: start, targets, what is trained, the gradient, switching off, merging."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from puna.core.errors import UsageError
from puna.model import Llama, cross_entropy_sum
from puna.model.linear import Linear
from puna.model.lora import (
    LoraConfig,
    LoRALinear,
    adapter_disabled,
    add_lora,
    dense_weight,
    lora_layers,
    weaken,
)
from puna.model.merge import merge, merged_copy
from puna.model.nf4 import NF4Linear

Build = Callable[[], Llama]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "qlora": {"base": "nf4"},
    "qdora": {"base": "nf4", "dora": True, "rslora": True},
}


def config(**changes: Any) -> LoraConfig:
    return LoraConfig.parse({"rank": 4, "alpha": 6} | changes, where="test")


def stir(model: Llama, seed: int = 1, by: float = 0.2) -> None:
    """Move the adapter away from its start, where it changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_a_fresh_adapter_changes_nothing(tiny: Build, ids: torch.Tensor, kind: str) -> None:
    plain, model = tiny(), tiny()
    add_lora(model, config(**KINDS[kind]))
    # DoRA divides lengths of rows by themselves, computed in two ways: rounding of fp32
    torch.testing.assert_close(model(ids), plain(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_product_is_that_of_the_changed_weight(tiny: Build, kind: str) -> None:
    model = tiny()
    add_lora(model, config(**KINDS[kind]))
    stir(model)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(4))
    for name, layer in lora_layers(model):
        if name.endswith("down_proj"):
            continue
        scale = 6 / 2 if KINDS[kind].get("rslora") else 6 / 4
        weight = dense_weight(layer.base) + scale * layer.lora_B @ layer.lora_A
        if layer.magnitude is not None:
            weight = layer.magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
        torch.testing.assert_close(layer(x), x @ weight.T, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_is_trained(tiny: Build, ids: torch.Tensor, kind: str) -> None:
    model = tiny()
    add_lora(model, config(**KINDS[kind]))
    stir(model)
    loss, _ = cross_entropy_sum(model.hidden(ids), model.head_weight(), ids)
    loss.backward()
    for name, parameter in model.named_parameters():
        inside = name.endswith(("lora_A", "lora_B", "magnitude"))
        assert parameter.requires_grad == inside, name
        assert (parameter.grad is not None) == inside, name
        assert not inside or bool(parameter.grad.any()), name


def test_gradients_are_those_of_autograd_through_the_changed_weight(tiny: Build) -> None:
    model = tiny()
    add_lora(model, config())
    stir(model)
    _, layer = next(lora_layers(model))
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    weight = dense_weight(layer.base) + 1.5 * layer.lora_B @ layer.lora_A
    wanted = (x, layer.lora_A, layer.lora_B)
    towards = torch.randn(5, 64, generator=torch.Generator().manual_seed(5))
    plain = torch.autograd.grad(x @ weight.T, wanted, towards)
    torch.testing.assert_close(torch.autograd.grad(layer(x), wanted, towards), plain)


def test_dora_treats_the_length_of_a_row_as_a_constant(tiny: Build) -> None:
    model = tiny()
    add_lora(model, config(dora=True))
    stir(model)
    _, layer = next(lora_layers(model))
    assert layer.magnitude is not None
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(4))
    weight = dense_weight(layer.base) + 1.5 * layer.lora_B @ layer.lora_A
    lengths = weight.norm(dim=1).detach()
    torch.testing.assert_close(layer.row_lengths(), lengths)
    plain = x @ (layer.magnitude[:, None] * weight / lengths[:, None]).T
    wanted = (layer.lora_A, layer.lora_B, layer.magnitude)
    towards = torch.randn(5, 64, generator=torch.Generator().manual_seed(5))
    ours = torch.autograd.grad(layer(x), wanted, towards)
    torch.testing.assert_close(
        ours, torch.autograd.grad(plain, wanted, towards), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (("q_proj",), {"0.self_attn.q_proj", "1.self_attn.q_proj"}),
        ((r"layers\.1\.mlp\.(up|gate)_proj",), {"1.mlp.up_proj", "1.mlp.gate_proj"}),
        (
            (r"0\.mlp\..*", "up_proj"),
            {f"{n}_proj" for n in ("0.mlp.gate", "0.mlp.up", "0.mlp.down", "1.mlp.up")},
        ),
    ],
)
def test_targets_are_names_or_expressions(
    tiny: Build, targets: tuple[str, ...], found: set[str]
) -> None:
    model = tiny()
    add_lora(model, config(targets=targets))
    assert {name for name, _ in lora_layers(model)} == {f"model.layers.{name}" for name in found}


def test_a_pattern_sets_rank_alpha_and_dropout_of_its_products(tiny: Build) -> None:
    model = tiny()
    patterns = {r"layers\.0\..*": {"rank": 2}, "up_proj": {"alpha": 1, "dropout": 0.5}}
    add_lora(model, config(patterns=patterns, dropout=0.1))
    for name, layer in lora_layers(model):
        first, up = ".0." in name, name.endswith("up_proj")
        assert layer.config.rank == (2 if first else 4) == layer.lora_A.shape[0]
        # the first pattern that fits counts, whole
        assert layer.scale == (6 / 2 if first else 1 / 4 if up else 6 / 4)
        assert layer.config.dropout == (0.5 if up and not first else 0.1)


def test_matrices_depend_on_the_seed_and_the_name_only(tiny: Build) -> None:
    def first(seed: int, **changes: Any) -> torch.Tensor:
        model = tiny()
        add_lora(model, config(**changes), seed=seed)
        return dict(lora_layers(model))["model.layers.1.mlp.up_proj"].lora_A.detach()

    assert torch.equal(first(3), first(3, targets=["up_proj"]))
    assert not torch.equal(first(3), first(4))


@pytest.mark.parametrize(("init", "std"), [("kaiming", (3 * 64) ** -0.5), ("gaussian", 1 / 32)])
def test_a_is_drawn_as_named_and_b_is_zero(tiny: Build, init: str, std: float) -> None:
    model = tiny()
    add_lora(model, config(init=init, rank=32, targets=["q_proj"]))
    for _, layer in lora_layers(model):
        assert float(layer.lora_A.detach().std()) == pytest.approx(std, rel=0.1)  # 2,048 draws
        assert not layer.lora_B.any()


def test_dropout_acts_only_where_gradients_are_recorded(tiny: Build, ids: torch.Tensor) -> None:
    dropped, exact = tiny(), tiny()
    add_lora(dropped, config(dropout=0.5))
    add_lora(exact, config())
    for model in (dropped, exact):
        stir(model)
    with torch.no_grad():
        assert torch.equal(dropped(ids), exact(ids))
    assert not torch.allclose(dropped(ids), exact(ids))


def test_dropout_keeps_the_expected_change(tiny: Build) -> None:
    model = tiny()
    add_lora(model, config(dropout=0.25, targets=["q_proj"]))
    stir(model)
    _, layer = next(lora_layers(model))
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mean = layer(x.expand(20_000, 64)).mean(0)
    with torch.no_grad():
        exact = layer(x)[0]
    # 20,000 draws of a deviation of about 1: five standard errors
    torch.testing.assert_close(mean, exact, atol=0.05, rtol=0)


def test_switched_off_it_is_the_base_and_comes_back(tiny: Build, ids: torch.Tensor) -> None:
    plain, model = tiny(), tiny()
    add_lora(model, config(dora=True))
    stir(model)
    changed = model(ids)
    assert not torch.allclose(changed, plain(ids))
    with adapter_disabled(model):
        assert torch.equal(model(ids), plain(ids))
    assert torch.equal(model(ids), changed)
    long = torch.zeros(1, 65, dtype=torch.int64)
    with pytest.raises(UsageError, match="65 tokens"), adapter_disabled(model):
        model(long)
    assert torch.equal(model(ids), changed)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_compute_the_same(tiny: Build, ids: torch.Tensor, kind: str) -> None:
    model = tiny()
    add_lora(model, config(**KINDS[kind]))
    stir(model)
    model.compute_dtype = torch.float32
    with torch.no_grad():
        before = model(ids)
        copy = merged_copy(model)
        torch.testing.assert_close(copy(ids), before, atol=1e-4, rtol=1e-4)
    report = merge(model, probe_bt=ids)
    with torch.no_grad():
        assert torch.equal(model(ids), copy(ids))
        assert report.logits == pytest.approx(float((model(ids) - before).abs().max()))
    assert report.logits < 1e-4
    assert len(report.weights) == 14
    assert report.worst.relative < 1e-7  # fp32 rounds at 6e-8
    assert {type(m) for m in model.modules() if isinstance(m, Linear | LoRALinear | NF4Linear)} == {
        Linear
    }
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.parameters())
    assert list(model.state_dict()) == list(tiny().state_dict())


def test_the_report_of_a_merge_into_bf16_says_what_rounding_loses(
    tiny: Build, ids: torch.Tensor
) -> None:
    model = tiny()
    add_lora(model, config(targets=["q_proj", "up_proj"]))
    stir(model, by=1e-3)
    layers = dict(lora_layers(model))
    with torch.no_grad():
        exact = {
            name: dense_weight(layer.base).double()
            + 1.5 * layer.lora_B.double() @ layer.lora_A.double()
            for name, layer in layers.items()
        }
        before = model(ids)
    report = merge(model, torch.bfloat16, ids)
    for found in report.weights:
        stored = model.get_submodule(found.product).weight.detach()
        error = stored.double() - exact[found.product]
        assert found.largest == pytest.approx(float(error.abs().max()))
        assert found.relative == pytest.approx(float(error.norm() / exact[found.product].norm()))
        change = exact[found.product] - dense_weight(layers[found.product].base).double()
        assert found.of_change == pytest.approx(float(error.norm() / change.norm()))
        assert 1e-3 < found.relative < 3e-3  # 8 bits of precision
        assert found.of_change > 0.1  # a small change drowns
    assert report.worst.relative == max(found.relative for found in report.weights)
    model.compute_dtype = torch.float32
    with torch.no_grad():
        assert report.logits == pytest.approx(float((model(ids) - before).abs().max()))
    assert report.worst.product in str(report)
    assert "logits differ by at most" in str(report)


def test_a_copy_shares_what_no_adapter_changes_and_leaves_the_model_alone(
    tiny: Build, ids: torch.Tensor
) -> None:
    model = tiny()
    add_lora(model, config(targets=["q_proj"]))
    stir(model)
    before = model(ids)
    copy = merged_copy(model)
    up = "model.layers.0.mlp.up_proj.weight"
    assert copy.get_parameter(up).data_ptr() == model.get_parameter(up).data_ptr()
    assert torch.equal(model(ids), before)
    assert not any(p.requires_grad for p in copy.parameters())


def test_the_base_is_held_as_asked(tiny: Build) -> None:
    kept, half, packed = tiny(), tiny(), tiny()
    for model, base in ((kept, "kept"), (half, "bf16"), (packed, "nf4")):
        add_lora(model, config(base=base, targets=["q_proj"]))
    frozen = [
        {p.dtype for p in m.parameters() if not p.requires_grad} for m in (kept, half, packed)
    ]
    assert frozen == [{torch.float32}, {torch.bfloat16}, {torch.bfloat16}]
    assert all(
        p.dtype == torch.float32 for m in (half, packed) for p in m.parameters() if p.requires_grad
    )
    # all products of the blocks, adapted or not
    assert sum(isinstance(m, NF4Linear) for m in packed.modules()) == 14
    assert sum(isinstance(m, Linear) for m in packed.modules()) == 1  # the head


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": ["lm_head"]}, "'lm_head' fits no product of the blocks: name some of q_proj"),
        ({"targets": ["q_proj", "w1"]}, "'w1' fits no product"),
        ({"patterns": {"x_proj": {"rank": 1}}}, "'x_proj' fits no product"),
        ({"targets": ["("]}, r"the pattern '\(' is broken"),
    ],
)
def test_a_target_that_fits_nothing_is_explained(
    tiny: Build, changes: dict[str, Any], said: str
) -> None:
    model = tiny()
    with pytest.raises(UsageError, match=said):
        add_lora(model, config(**changes))
    assert all(p.requires_grad for p in model.parameters())


def test_a_second_adapter_and_a_merge_without_one_are_refused(tiny: Build) -> None:
    model = tiny()
    with pytest.raises(UsageError, match="no adapter to merge"):
        merge(model)
    add_lora(model, config())
    with pytest.raises(UsageError, match="has an adapter already"):
        add_lora(model, config())


@pytest.mark.parametrize("kind", ["lora", "rslora", "qlora"])
def test_a_weakened_adapter_keeps_its_share_of_the_change(tiny: Build, kind: str) -> None:
    model = tiny()
    add_lora(model, config(**KINDS[kind]))
    stir(model)
    with adapter_disabled(model):
        plain = {name: dense_weight(layer.base).clone() for name, layer in lora_layers(model)}
    whole = dict(merged_copy(model).named_parameters())
    weaken(model, 0.25)
    part = dict(merged_copy(model).named_parameters())
    assert len(plain) > 0
    for name, before in plain.items():
        change = whole[f"{name}.weight"] - before
        assert change.abs().max() > 0.01
        torch.testing.assert_close(part[f"{name}.weight"], before + 0.25 * change)


def test_an_adapter_of_dora_is_not_weakened(tiny: Build) -> None:
    model = tiny()
    add_lora(model, config(dora=True))
    with pytest.raises(UsageError, match="dora has no strength"):
        weaken(model, 0.5)
