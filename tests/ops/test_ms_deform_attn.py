"""The compiled CPU operator against the reference, and as a citizen of PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from ops.op_inputs import Inputs, make_inputs, run_with_isa
from torch import Tensor, nn

from dino_core.ops.backend import use_backend
from dino_core.ops.ms_deform_attn import ms_deform_attn
from dino_core.ops.reference import ms_deform_attn_reference

pytestmark = pytest.mark.compiled

# float32: about ten sums of rounding errors of numbers near 1. bfloat16: both sides accumulate in
# float32 and round once, so they differ by at most the last of 8 bits.
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 2e-5},
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-4},
    torch.float16: {"rtol": 2**-10, "atol": 1e-4},
}
KERNEL_TYPES = [dtype for dtype in TOLERANCE if dtype != torch.float16]


def results(function: Callable[..., Tensor], inputs: Inputs) -> list[Tensor]:
    """The output and the three gradients for a fixed output gradient."""
    inputs = inputs.with_gradients()
    output = function(*inputs.args)
    generator = torch.Generator().manual_seed(7)
    direction = torch.randn(output.shape, generator=generator).to(output)
    return [output.detach(), *torch.autograd.grad(output, inputs.tensors, direction)]


def assert_like_reference(inputs: Inputs) -> None:
    tolerance = TOLERANCE[inputs.value.dtype]
    with use_backend("compiled"):
        compiled = results(ms_deform_attn, inputs)
    expected = results(ms_deform_attn_reference, inputs)
    # The gradient of a location is `side` times that of a pixel coordinate.
    side = max(max(shape) for shape in inputs.spatial_shapes)
    scales = [1, 1, side, 1]
    for found, wanted, scale in zip(compiled, expected, scales, strict=True):
        atol = tolerance["atol"] * scale
        torch.testing.assert_close(found, wanted, rtol=tolerance["rtol"], atol=atol)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels", [1, 7, 16, 24, 32, 40, 64, 97])
def test_like_reference(channels: int, dtype: torch.dtype) -> None:
    assert_like_reference(make_inputs(channels=channels, dtype=dtype))


@pytest.mark.parametrize(
    "sizes",
    [
        {"heads": 1},
        {"batch": 1, "heads": 8, "queries": 300},
        {"batch": 3, "points": 1},
        {"points": 5},
        {"queries": 1},
        {"shapes": ((1, 1),)},
        {"shapes": ((1, 9), (7, 1), (1, 1), (1, 1), (3, 3))},
        {"queries": 600, "shapes": ((40, 50), (20, 25))},
        {"queries": 9, "shapes": ((40, 50), (20, 25))},  # few queries: no dense copy of the head
    ],
    ids=str,
)
def test_sizes(sizes: dict[str, int]) -> None:
    assert_like_reference(make_inputs(**sizes))  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    code = (
        "from ops.test_ms_deform_attn import *\n"
        "for dtype in TOLERANCE:\n"
        "    for channels in (7, 24, 32):\n"
        "        assert_like_reference(make_inputs(channels=channels, dtype=dtype))\n"
    )
    run_with_isa(isa, code)


def test_no_queries() -> None:
    inputs = make_inputs(queries=0).with_gradients()
    output = ms_deform_attn(*inputs.args)
    assert output.shape == (2, 0, 96)
    output.sum().backward()
    assert inputs.value.grad is not None
    assert not inputs.value.grad.any()


def test_far_and_unknown_locations_are_zero_and_pass_no_gradient() -> None:
    inputs = make_inputs(queries=64)
    strange = itertools.cycle(
        [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e38, 2.0**31, -(2.0**31), 1e9]
    )
    locations = inputs.locations.clone()
    flat = locations.flatten(0, 4)
    hit = torch.arange(len(flat)) % 3 == 0
    for index in hit.nonzero().flatten().tolist():
        flat[index, index % 2] = next(strange)
    mixed = Inputs(inputs.value, inputs.spatial_shapes, locations, inputs.weights)
    assert_like_reference(mixed)

    output, grad_value, grad_locations, grad_weights = results(ms_deform_attn, mixed)
    assert output.isfinite().all()
    assert grad_value.isfinite().all()
    assert not grad_locations.flatten(0, 4)[hit].any()
    assert not grad_weights.flatten()[hit].any()


def test_locations_on_pixel_centers_and_borders() -> None:
    # Multiples of half a pixel from two pixels before to two behind an 8 x 4 level. At centers
    # the gradient has two one-sided limits; both sides take that towards larger coordinates. The
    # very edge, pixel -1, is left out: there the operator's gradient is zero, grid_sample's is not.
    xs, ys = torch.arange(-4, 21) / 16, torch.arange(-4, 13) / 8
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="ij"), -1).reshape(1, -1, 1, 1, 1, 2)
    grid = grid[:, (grid != -1 / 16)[0, :, 0, 0, 0, 0] & (grid != -1 / 8)[0, :, 0, 0, 0, 1]]
    inputs = make_inputs(batch=1, heads=1, points=1, queries=grid.shape[1], shapes=((4, 8),))
    assert_like_reference(Inputs(inputs.value, inputs.spatial_shapes, grid, inputs.weights))


def test_strided_inputs() -> None:
    inputs = make_inputs()
    strided = Inputs(
        inputs.value.transpose(1, 2).contiguous().transpose(1, 2),
        inputs.spatial_shapes,
        inputs.locations.transpose(1, 2).contiguous().transpose(1, 2),
        inputs.weights.flip(1).contiguous().flip(1),
    )
    assert not strided.value.is_contiguous()
    for ours, expected in zip(
        results(ms_deform_attn, strided), results(ms_deform_attn, inputs), strict=True
    ):
        assert torch.equal(ours, expected)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_same_bits_at_any_number_of_threads(dtype: torch.dtype) -> None:
    inputs = make_inputs(queries=700, shapes=((30, 20), (9, 9)), dtype=dtype)
    expected = None
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        found = results(ms_deform_attn, inputs)
        expected = expected or found
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gradcheck() -> None:
    inputs = make_inputs(queries=4, channels=5, points=2, dtype=torch.float64).with_gradients()
    function = lambda v, x, w: ms_deform_attn(v, inputs.spatial_shapes, x, w)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs.tensors)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own doing
@pytest.mark.parametrize("dtype", KERNEL_TYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    inputs = make_inputs(dtype=dtype)
    live = inputs.with_gradients()
    torch.library.opcheck(
        torch.ops.dino.ms_deform_attn.default,
        (live.value, live.flat_shapes, live.locations, live.weights),
    )
    output = torch.ones(2, 21, 96, dtype=dtype)
    torch.library.opcheck(
        torch.ops.dino.ms_deform_attn_backward.default,
        (output, inputs.value, inputs.flat_shapes, inputs.locations, inputs.weights),
    )


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_autocast_narrows_the_value_and_nothing_else(backend: str) -> None:
    inputs = make_inputs()
    narrow = Inputs(inputs.value.bfloat16(), *inputs.args[1:])
    with use_backend(backend):  # type: ignore[arg-type]
        expected = ms_deform_attn(*narrow.args)
        with torch.autocast("cpu", torch.bfloat16):
            found = ms_deform_attn(*inputs.args)
            double = ms_deform_attn(*make_inputs(dtype=torch.float64).args)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    assert double.dtype == torch.float64


def test_half_precision_weights_and_locations_are_widened() -> None:
    inputs = make_inputs(dtype=torch.bfloat16)
    narrow = Inputs(
        inputs.value, inputs.spatial_shapes, inputs.locations.bfloat16(), inputs.weights.bfloat16()
    )
    wide = Inputs(
        inputs.value, inputs.spatial_shapes, narrow.locations.float(), narrow.weights.float()
    )
    assert torch.equal(ms_deform_attn(*narrow.args), ms_deform_attn(*wide.args))


class Attend(nn.Module):
    """Takes its level size from a tensor's shape, as a model does."""

    def forward(self, image: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        value = image.flatten(2).transpose(1, 2).unflatten(2, (2, 8))
        return ms_deform_attn(value, [(height, width)], locations, weights)


def attend_inputs(height: int, width: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    inputs = make_inputs(batch=1, heads=2, channels=8, shapes=((height, width),))
    image = inputs.value.flatten(2).transpose(1, 2).unflatten(2, (height, width))
    return image, inputs.locations, inputs.weights


def expected_attend(height: int) -> Tensor:
    inputs = make_inputs(batch=1, heads=2, channels=8, shapes=((height, 6),))
    return ms_deform_attn_reference(*inputs.args)


@pytest.mark.filterwarnings("default")  # of the compiler itself
def test_compile_without_graph_breaks_and_with_gradients() -> None:
    torch.compiler.reset()
    compiled = torch.compile(ms_deform_attn, fullgraph=True, backend="aot_eager", dynamic=True)
    for height in (4, 7):
        inputs = make_inputs(shapes=((height, 6), (2, 3)))
        for found, expected in zip(
            results(compiled, inputs), results(ms_deform_attn, inputs), strict=True
        ):
            torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("default")
def test_export_keeps_one_operator_and_a_dynamic_height() -> None:
    height = torch.export.Dim("height", min=2, max=64)
    program = torch.export.export(
        Attend(), attend_inputs(5), dynamic_shapes=({2: height}, None, None), strict=False
    )
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "dino.ms_deform_attn.default" in called
    assert not any("grid_sample" in name for name in called)
    for size in (5, 11):
        torch.testing.assert_close(program.module()(*attend_inputs(size)), expected_attend(size))


def change(inputs: Inputs, **changes: object) -> list[object]:
    names = ["value", "spatial_shapes", "locations", "weights"]
    return [changes.get(name, getattr(inputs, name)) for name in names]


def test_wrong_arguments_say_what_was_found() -> None:
    inputs = make_inputs()
    cases: list[tuple[type[Exception], str, dict[str, object]]] = [
        (ValueError, r"value must have shape \(B, S, M, D\), found \(2, 84, 96\)",
         {"value": inputs.value.flatten(2)}),
        (ValueError, "sum to 83 tokens, value has S = 84",
         {"spatial_shapes": ((9, 7), (5, 4), (0, 1))}),
        (ValueError, r"sampling_locations must .* = \(2, 21, 3, 2, 4, 2\)",
         {"spatial_shapes": ((9, 7), (7, 3))}),
        (ValueError, r"attention_weights must .* found \(2, 21, 3, 3, 3\)",
         {"weights": inputs.weights[..., :3]}),
        (ValueError, "sampling_locations is on meta, value is on cpu",
         {"locations": inputs.locations.to("meta")}),
        (TypeError, "value must hold floating-point numbers, found torch.int64",
         {"value": inputs.value.long()}),
    ]  # fmt: skip
    for error, message, changes in cases:
        with pytest.raises(error, match=message):
            ms_deform_attn(*change(inputs, **changes))  # type: ignore[arg-type]


def test_the_operator_itself_checks_its_arguments() -> None:
    inputs = make_inputs()
    cases: list[tuple[str, dict[str, object]]] = [
        ("value must have 4 dimensions", {"value": inputs.value.flatten(2)}),
        ("value must be contiguous", {"value": inputs.value.transpose(1, 2)}),
        ("spatial_shapes must hold one .* found 5 numbers", {"flat_shapes": [9, 7, 5, 4, 1]}),
        ("level 2 is 0 x 1", {"flat_shapes": [9, 7, 5, 4, 0, 1]}),
        ("level 0 is -9 x -7", {"flat_shapes": [-9, -7, 5, 4, 1, 1]}),
        ("sum to 85 tokens, value has S = 84", {"flat_shapes": [9, 7, 5, 4, 2, 1]}),
        ("sampling_locations must have shape", {"locations": inputs.locations[:, :, :2]}),
        ("sampling_locations must be Float when value is Float, found Double",
         {"locations": inputs.locations.double()}),
        ("attention_weights must be contiguous", {"weights": inputs.weights.transpose(3, 4)}),
        ("value on a CPU must be float32, float64 or bfloat16", {"value": inputs.value.half()}),
    ]  # fmt: skip
    square = make_inputs(points=3)  # 3 levels, 3 points: a transposed tensor has the right shape
    for message, changes in cases:
        base = square if "weights" in changes else inputs
        if "weights" in changes:
            changes = {"weights": square.weights.transpose(3, 4)}
        if "value" in changes and "contiguous" in message:
            value = inputs.value.transpose(1, 2).contiguous().transpose(1, 2)
            changes = {"value": value}
        names = ["value", "flat_shapes", "locations", "weights"]
        arguments = [changes.get(name, getattr(base, name)) for name in names]
        with pytest.raises(RuntimeError, match=message):
            torch.ops.dino.ms_deform_attn(*arguments)
    with pytest.raises(RuntimeError, match=r"grad_output must have shape \(B, Q, M \* D\)"):
        torch.ops.dino.ms_deform_attn_backward(
            torch.ones(2, 20, 96),
            inputs.value,
            inputs.flat_shapes,
            inputs.locations,
            inputs.weights,
        )
