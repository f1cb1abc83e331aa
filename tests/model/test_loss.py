"""The chunked head against the plain computation it replaces."""

import pytest
import torch
import torch.nn.functional as F

from puna.model import IGNORED, cross_entropy_sum, loss, token_logprobs


@pytest.fixture(params=["one chunk", "many chunks", "narrow stripes"])
def problem(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if request.param == "many chunks":
        monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * 50 * 3)  # three tokens at a time
    if request.param == "narrow stripes":
        monkeypatch.setattr(loss, "STRIPE", 7)  # seven rows of the head at a time
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 11, 16, generator=generator, dtype=torch.float32)
    weight = torch.randn(50, 16, generator=generator)
    labels = torch.randint(0, 50, (2, 11), generator=generator)
    labels[0, 3:6] = IGNORED
    labels[1, 0] = IGNORED
    return hidden.requires_grad_(), weight.requires_grad_(), labels


def plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = (hidden @ weight.T).flatten(0, 1)
    flat = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view(labels.shape)


Problem = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def test_the_sum_and_its_gradients_equal_the_plain_ones(problem: Problem) -> None:
    hidden, weight, labels = problem
    total, count = cross_entropy_sum(hidden, weight, labels)
    expected = plain(hidden, weight, labels).sum()
    assert count == 18
    torch.testing.assert_close(total, expected)
    ours = torch.autograd.grad(0.5 * total, (hidden, weight))
    torch.testing.assert_close(ours, torch.autograd.grad(0.5 * expected, (hidden, weight)))


def test_token_logprobs_and_their_gradients_equal_the_plain_ones(problem: Problem) -> None:
    hidden, weight, labels = problem
    logprobs = token_logprobs(hidden, weight, labels)
    expected = -plain(hidden, weight, labels)
    torch.testing.assert_close(logprobs, expected)
    scale = torch.randn(labels.shape, generator=torch.Generator().manual_seed(2))
    ours = torch.autograd.grad((scale * logprobs).sum(), (hidden, weight))
    theirs = torch.autograd.grad((scale * expected).sum(), (hidden, weight))
    torch.testing.assert_close(ours, theirs)


def test_logits_of_all_tokens_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * 50 * 4)
    largest = 0
    linear = F.linear

    def watched(*args: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        result = linear(*args)
        largest = max(largest, result.shape[0])
        return result

    monkeypatch.setattr(F, "linear", watched)
    hidden, weight = torch.randn(3, 20, 8, requires_grad=True), torch.randn(50, 8)
    labels = torch.zeros(3, 20, dtype=torch.int64)
    cross_entropy_sum(hidden, weight, labels)[0].backward()
    token_logprobs(hidden, weight, labels).sum().backward()
    assert largest == 4


def test_nothing_labelled_is_a_sum_of_zero() -> None:
    hidden, weight = torch.randn(1, 4, 8, requires_grad=True), torch.randn(9, 8)
    total, count = cross_entropy_sum(hidden, weight, torch.full((1, 4), IGNORED))
    assert (float(total.detach()), count) == (0.0, 0)


@pytest.mark.parametrize("frozen", ["head", "hidden"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(
    problem: Problem, frozen: str
) -> None:
    hidden, weight, labels = problem
    for compute in (
        lambda h, w: cross_entropy_sum(h, w, labels)[0],
        lambda h, w: token_logprobs(h, w, labels).square().sum(),
    ):
        both = torch.autograd.grad(compute(hidden, weight), (hidden, weight))
        if frozen == "head":
            (one,) = torch.autograd.grad(compute(hidden, weight.detach()), hidden)
            assert torch.equal(one, both[0])
        else:
            (one,) = torch.autograd.grad(compute(hidden.detach(), weight), weight)
            assert torch.equal(one, both[1])


def test_what_a_gpu_compiles_equals_what_a_cpu_does_in_place(problem: Problem) -> None:
    hidden, weight, labels = (tensor.detach() for tensor in problem)
    rows, target = hidden.flatten(0, 1), labels.flatten().clamp(min=0)
    scale = torch.linspace(-1, 1, len(target))
    logprobs, gradient = loss._with_gradient(rows, weight, target, scale)
    found, its_gradient = loss._read_twice(rows @ weight.T, target, scale)
    assert torch.allclose(found, logprobs, atol=1e-5)
    assert torch.allclose(its_gradient, gradient, atol=1e-6)
    assert torch.allclose(loss._read_once(rows @ weight.T, target), logprobs, atol=1e-5)
