"""The operator on raw points against locations and weights computed by PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ops.op_inputs import make_inputs, run_with_isa
from ops.test_ms_deform_attn import KERNEL_TYPES, TOLERANCE
from torch import Tensor

from dino_core.ops.backend import use_backend
from dino_core.ops.deformable_attention import deformable_attention

pytestmark = pytest.mark.compiled

Raw = tuple[Tensor, tuple[tuple[int, int], ...], Tensor, Tensor, Tensor]


def raw_inputs(box: int = 2, dtype: torch.dtype = torch.float32, **sizes: object) -> Raw:
    """Offsets of some pixels around points or boxes; logits of any size."""
    inputs = make_inputs(dtype=dtype, **sizes)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    batch, queries, _, levels = inputs.weights.shape[:4]
    precise = inputs.locations.dtype
    references = torch.rand(batch, queries, levels, box, generator=generator, dtype=precise)
    offsets = torch.randn(inputs.locations.shape, generator=generator, dtype=precise) * 2
    logits = torch.randn(inputs.weights.shape, generator=generator, dtype=precise) * 3
    return inputs.value, inputs.spatial_shapes, references, offsets.to(dtype), logits.to(dtype)


def results(function: Callable[..., Tensor], raw: Raw) -> list[Tensor]:
    """The output and the gradients of value, offsets and logits."""
    value, shapes, references, offsets, logits = raw
    live = [t.detach().clone().requires_grad_() for t in (value, offsets, logits)]
    output = function(live[0], shapes, references, live[1], live[2])
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(7))
    return [output.detach(), *torch.autograd.grad(output, live, direction.to(output))]


def assert_like_composition(raw: Raw) -> None:
    with use_backend("compiled"):
        fused = results(deformable_attention, raw)
    with use_backend("reference"):
        composed = results(deformable_attention, raw)
    tolerance = TOLERANCE[raw[0].dtype]
    for found, wanted in zip(fused, composed, strict=True):
        atol = tolerance["atol"] * max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(found, wanted, rtol=tolerance["rtol"], atol=atol)


@pytest.mark.parametrize("box", [2, 4])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"points": 1, "channels": 7},
        {"points": 5, "shapes": ((4, 3), (2, 2)), "heads": 1},
        {"queries": 600, "shapes": ((40, 50), (20, 25)), "heads": 2},
        {"queries": 9, "shapes": ((40, 50), (20, 25))},
    ],
    ids=str,
)
def test_like_composition(box: int, dtype: torch.dtype, sizes: dict[str, object]) -> None:
    assert_like_composition(raw_inputs(box, dtype, **sizes))


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    code = (
        "from ops.test_deformable_attention import *\n"
        "from ops.test_depthwise import *\n"
        "for dtype in TOLERANCE:\n"
        "    assert_like_composition(raw_inputs(4, dtype, points=3, channels=24))\n"
        "test_gradients_are_those_of_conv2d(5, 2, 2, (2, 150, 9, 11))\n"
        "test_gradients_are_those_of_conv2d(3, 1, 1, (2, 70, 9, 11))\n"
    )
    run_with_isa(isa, code)


@pytest.mark.parametrize("box", [2, 4])
def test_gradcheck(box: int) -> None:
    value, shapes, references, offsets, logits = raw_inputs(
        box, torch.float64, queries=4, channels=5, points=2
    )
    live = [t.requires_grad_() for t in (value, offsets, logits)]
    function = lambda v, o, w: deformable_attention(v, shapes, references, o, w)  # noqa: E731
    assert torch.autograd.gradcheck(function, live)


def test_softmax_of_extreme_logits() -> None:
    """Far below the largest a weight is zero; equal ones share; -inf is allowed."""
    value, shapes, references, offsets, logits = raw_inputs(points=2, heads=1, queries=3, batch=1)
    logits[0, 0] = -1e4
    logits[0, 0, 0, 1, 1] = 1e4
    logits[0, 1] = 50.0
    logits[0, 2, 0, :2] = -float("inf")
    assert_like_composition((value, shapes, references, offsets, logits))


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_same_bits_at_any_number_of_threads(dtype: torch.dtype) -> None:
    raw = raw_inputs(4, dtype, queries=700, shapes=((30, 20), (9, 9)))
    expected = None
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found = results(deformable_attention, raw)
        expected = expected or found
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own doing
@pytest.mark.parametrize("dtype", KERNEL_TYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    value, shapes, references, offsets, logits = raw_inputs(4, dtype)
    flat = [size for shape in shapes for size in shape]
    live = [t.detach().clone().requires_grad_() for t in (value, offsets, logits)]
    torch.library.opcheck(
        torch.ops.dino.deformable_attention.default, (live[0], flat, references, *live[1:])
    )
    output = torch.ones(2, 21, 96, dtype=dtype)
    torch.library.opcheck(
        torch.ops.dino.deformable_attention_backward.default,
        (output, value, flat, references, offsets, logits),
    )


def test_references_with_a_gradient_get_it() -> None:
    """The operator gives them none, so such a call is composed."""
    value, shapes, references, offsets, logits = raw_inputs(4)
    references.requires_grad_()
    deformable_attention(value, shapes, references, offsets, logits).sum().backward()
    assert references.grad is not None
    assert references.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("index", "change", "words"),
    [
        (2, lambda t: t[:, :, :2], "references must have shape"),
        (2, lambda t: t[..., :1], "references must have shape"),
        (3, lambda t: t[:, :, :, :, :2], "attention_logits must have shape"),
        (4, lambda t: t[:, :5], "attention_logits must have shape"),
        (0, lambda t: t[:, 1:], "spatial_shapes sum to"),
    ],
)
def test_wrong_shapes(index: int, change: Callable[[Tensor], Tensor], words: str) -> None:
    raw = list(raw_inputs())
    raw[index] = change(raw[index])  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=words):
        deformable_attention(*raw)  # type: ignore[arg-type]


def test_each_operator_names_itself_in_its_errors() -> None:
    """Values of another level size than spatial_shapes claims, straight to each operator."""
    value, points = torch.zeros(1, 4, 1, 2), torch.zeros(1, 1, 1, 1, 1)
    xy, references = torch.zeros(1, 1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    grad = torch.zeros(1, 1, 2)
    for name, arguments in {
        "ms_deform_attn": (value, [2, 3], xy, points),
        "ms_deform_attn_backward": (grad, value, [2, 3], xy, points),
        "deformable_attention": (value, [2, 3], references, xy, points),
        "deformable_attention_backward": (grad, value, [2, 3], references, xy, points),
    }.items():
        with pytest.raises(RuntimeError, match=f"^{name}: spatial_shapes sum to 6 tokens"):
            getattr(torch.ops.dino, name)(*arguments)
