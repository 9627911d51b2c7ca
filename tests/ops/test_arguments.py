"""Arguments that no kernel may see: zero and huge sizes, several devices, memory that is not there.

Each call goes straight to the operators, past the checks of the Python functions.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ops.test_deformable_attention import raw_inputs
from ops.test_ms_deform_attn import KERNEL_TYPES
from torch import Tensor

from dino_core.ops.backend import use_backend
from dino_core.ops.deformable_attention import deformable_attention
from dino_core.ops.ms_deform_attn import ms_deform_attn

pytestmark = pytest.mark.compiled

SHAPES = ((2, 2), (1, 1))
FLAT = [2, 2, 1, 1]


def arguments(operator: str, dtype: torch.dtype = torch.float32, **sizes: int) -> dict[str, Tensor]:
    """The tensors of an operator, by their names in its schema."""
    size = {"batch": 1, "queries": 3, "heads": 2, "channels": 4, "points": 2, **sizes}
    value, _, references, offsets, logits = raw_inputs(2, dtype, shapes=SHAPES, **size)
    precise = references.dtype
    grad = torch.ones(size["batch"], size["queries"], size["heads"] * size["channels"])
    gradient = {"grad_output": grad.to(dtype)} if operator.endswith("backward") else {}
    points = (
        {"sampling_locations": offsets.to(precise), "attention_weights": logits.to(precise)}
        if operator.startswith("ms_")
        else {"references": references, "sampling_offsets": offsets, "attention_logits": logits}
    )
    return {**gradient, "value": value, **points}


def call(operator: str, tensors: dict[str, Tensor], flat: list[int] = FLAT) -> tuple[Tensor, ...]:
    found = getattr(torch.ops.dino, operator)(spatial_shapes=flat, **tensors)
    return found if isinstance(found, tuple) else (found,)


OPERATORS = [
    "ms_deform_attn",
    "ms_deform_attn_backward",
    "deformable_attention",
    "deformable_attention_backward",
]


@pytest.mark.parametrize("dtype", KERNEL_TYPES, ids=str)
@pytest.mark.parametrize("size", ["batch", "queries", "heads", "channels", "points"])
@pytest.mark.parametrize("raw", [False, True])
def test_zero_sizes_equal_the_reference(raw: bool, size: str, dtype: torch.dtype) -> None:
    name = "deformable_attention" if raw else "ms_deform_attn"
    tensors = list(arguments(name, dtype, **{size: 0}).values())
    live = [t.requires_grad_() for t in tensors if not (raw and t is tensors[1])]
    results = []
    for backend in ("compiled", "reference"):
        with use_backend(backend):  # type: ignore[arg-type]
            if raw:
                output = deformable_attention(tensors[0], SHAPES, *tensors[1:])
            else:
                output = ms_deform_attn(tensors[0], SHAPES, *tensors[1:])
        results.append([output, *torch.autograd.grad(output.sum(), live)])
    for found, wanted in zip(*results, strict=True):
        assert torch.equal(found, wanted)
        assert not found.any()


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("size", ["batch", "queries", "heads", "channels", "points"])
def test_zero_sizes_at_the_operator(operator: str, size: str) -> None:
    for found in call(operator, arguments(operator, **{size: 0})):
        assert not found.any()


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("flat", [[0, 0], [0, 5], [], [2**62, 4], [2**31, 2**31] * 8])
def test_impossible_levels(operator: str, flat: list[int]) -> None:
    tensors = arguments(operator)
    with pytest.raises(RuntimeError, match=f"^{operator}: "):
        call(operator, {**tensors, "value": tensors["value"][:, :0]}, flat)


def test_sizes_too_large_for_32_bits_are_refused() -> None:
    """Tensors without elements take no memory, whatever their other sizes."""
    one = torch.ones(1, 1, 1, 1)
    grad = references = torch.ones(1)  # sizes are checked first
    cases: list[tuple[str, list[int], Tensor, tuple[int, ...]]] = [
        ("at most 2\\^20 points", [1, 1], one, (1, 0, 1, 1, 2**33)),
        ("at most 2\\^20 points", [1, 1], one, (1, 0, 1, 1, 2**20 + 1)),
        ("fewer than 2\\^31 elements", [2**32, 1], torch.ones(1, 2**32, 1, 0), (1, 1, 1, 1, 1)),
        ("fewer than 2\\^31 elements", [1, 1], torch.ones(0, 1, 2**16, 2**15), (0, 1, 2**16, 1, 1)),
        ("at most 2\\^30 channels", [1, 1], torch.ones(0, 1, 1, 2**30 + 1), (0, 1, 1, 1, 1)),
        ("overflow", [1, 1], torch.ones(2**20, 1, 0, 2**30), (2**20, 2**20, 0, 1, 1)),
    ]
    for words, flat, value, points in cases:
        xy, weights = torch.ones(*points, 2), torch.ones(points)
        with pytest.raises(RuntimeError, match=words):
            torch.ops.dino.ms_deform_attn(value, flat, xy, weights)
        with pytest.raises(RuntimeError, match=words):
            torch.ops.dino.ms_deform_attn_backward(grad, value, flat, xy, weights)
        with pytest.raises(RuntimeError, match=words):
            torch.ops.dino.deformable_attention(value, flat, references, xy, weights)
        with pytest.raises(RuntimeError, match=words):
            torch.ops.dino.deformable_attention_backward(grad, value, flat, references, xy, weights)


@pytest.mark.parametrize("operator", OPERATORS)
def test_tensors_on_several_devices_are_refused(operator: str) -> None:
    tensors = arguments(operator)
    for name in tensors:
        with pytest.raises(RuntimeError, match=f"^{operator}: .* must be on the device of value"):
            call(operator, {**tensors, name: tensors[name].to("meta")})


@pytest.mark.parametrize("operator", OPERATORS)
def test_all_tensors_on_the_meta_device_give_shapes(operator: str) -> None:
    tensors = arguments(operator, torch.bfloat16)
    real = call(operator, tensors)
    fake = call(operator, {name: tensor.to("meta") for name, tensor in tensors.items()})
    for found, wanted in zip(fake, real, strict=True):
        assert found.is_meta
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)


@pytest.mark.parametrize("operator", OPERATORS)
def test_memory_that_is_not_there_is_refused(operator: str) -> None:
    for name in arguments(operator):
        tensors = arguments(operator)
        tensors[name] = tensors[name].clone()
        tensors[name].untyped_storage().resize_(8)
        with pytest.raises(RuntimeError, match=f"^{operator}: {name} needs .* has room for 2;"):
            call(operator, tensors)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", KERNEL_TYPES, ids=str)
def test_numbers_between_their_boundaries_are_refused(operator: str, dtype: torch.dtype) -> None:
    for name in arguments(operator):
        tensors = arguments(operator, dtype)
        tensors[name] = misaligned(tensors[name])
        with pytest.raises(RuntimeError, match=f"^{operator}: {name} must start at a multiple of"):
            call(operator, tensors)


def misaligned(tensor: Tensor) -> Tensor:
    """The same numbers, one byte behind a boundary."""
    memory = bytearray(1 + tensor.numel() * tensor.element_size())
    return torch.frombuffer(memory, dtype=tensor.dtype, offset=1).view(tensor.shape)


def second_derivative(function: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    live = [t.detach().clone().requires_grad_() for t in tensors]
    gradients = torch.autograd.grad(function(*live).pow(2).sum(), live, create_graph=True)
    return list(torch.autograd.grad(sum(g.sin().sum() for g in gradients), live))


def attention(raw: bool) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """Deformable attention as a function of the tensors that get gradients, and these."""
    name = "deformable_attention" if raw else "ms_deform_attn"
    tensors = arguments(name, torch.float64)
    if not raw:
        return lambda v, *rest: ms_deform_attn(v, SHAPES, *rest), list(tensors.values())
    references = tensors.pop("references")
    return lambda v, *rest: deformable_attention(v, SHAPES, references, *rest), [*tensors.values()]


@pytest.mark.parametrize("raw", [False, True])
def test_a_second_derivative_is_an_error(raw: bool) -> None:
    function, tensors = attention(raw)
    name = "deformable_attention" if raw else "ms_deform_attn"
    with pytest.raises(RuntimeError, match=rf"^{name} has no second derivative.*DINO_OPS"):
        second_derivative(function, *tensors)
    scalar = lambda v: function(v, *tensors[1:]).pow(2).sum()  # noqa: E731
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.functional.hessian(scalar, tensors[0])


@pytest.mark.parametrize("raw", [False, True])
def test_a_second_derivative_of_the_reference(raw: bool) -> None:
    """Against differences of the compiled operator's first derivatives."""
    function, tensors = attention(raw)
    value, *rest = tensors
    direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(3)).double()

    def gradient(value: Tensor, create_graph: bool = False) -> Tensor:
        live = rest[0].detach().clone().requires_grad_()
        output = function(value, live, *rest[1:]).pow(2).sum()
        return torch.autograd.grad(output, live, create_graph=create_graph)[0]

    with use_backend("compiled"):
        step = 1e-6 * direction
        wanted = (gradient(value + step).sin().sum() - gradient(value - step).sin().sum()) / 2e-6
    with use_backend("reference"):
        live = value.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(gradient(live, create_graph=True).sin().sum(), live)
    assert float((found * direction).sum()) == pytest.approx(float(wanted), rel=1e-5)
    assert abs(float(wanted)) > 1e-2


def test_the_operator_refuses_a_gradient_of_references() -> None:
    tensors = arguments("deformable_attention")
    tensors["references"].requires_grad_()
    (output,) = call("deformable_attention", tensors)
    with pytest.raises(RuntimeError, match="has no gradient of references; detach them"):
        output.sum().backward()


@pytest.mark.parametrize("change", [lambda t: t.to_sparse(), lambda t: t.to_mkldnn()])
def test_other_layouts_are_refused(change: Callable[[Tensor], Tensor]) -> None:
    for operator, name in [("ms_deform_attn", "value"), ("deformable_attention", "references")]:
        tensors = arguments(operator)
        with pytest.raises(RuntimeError, match=operator):
            call(operator, {**tensors, name: change(tensors[name])})
