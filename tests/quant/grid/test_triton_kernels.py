"""The GPU kernels against the arithmetic of the CPU: in the interpreter of Triton, and on a device if there is one."""

import os
import subprocess
import sys

import pytest
import torch

from quant.grid.affine import activation_qparams, fake_quantize_activation

pytest.importorskip("triton")


def check(device: str, *dtypes: torch.dtype) -> None:
    """Forward and backward, layouts of several kinds, ties, NaN and values far outside."""
    from quant.grid.triton_kernels import fake_quantize, pass_inside

    generator = torch.Generator().manual_seed(0)
    for dtype in dtypes:
        for bits in (2, 4, 8):
            values = torch.randn(2, 8, 5, 33, generator=generator).mul(2).to(dtype)
            scale, zero_point = activation_qparams(torch.tensor(-1.3), torch.tensor(2.1), bits)
            values[0, 0, 0, :9] = (scale * torch.arange(-4.5, 4.5)).to(dtype)  # halfway between two integers
            values[1, 0, 0, :3] = torch.tensor([torch.nan, 6e4, -torch.inf])
            # A slice that is not dense, and the layout of images on a GPU.
            for layout in (values, values.to(memory_format=torch.channels_last), values[:, ::2, 1:]):
                gradient = torch.randn(layout.shape, generator=generator).to(dtype)
                leaf = layout.clone().requires_grad_()
                expected = fake_quantize_activation(leaf, scale, zero_point, bits)
                (by_values,) = torch.autograd.grad(expected, leaf, gradient)
                inputs = layout.to(device), scale.to(device), zero_point.to(device), bits
                found = fake_quantize(*inputs)
                assert found.dtype == dtype
                assert torch.equal(found.cpu().nan_to_num(7), expected.detach().nan_to_num(7))
                known = ~layout.isnan()
                passed = pass_inside(gradient.to(device), *inputs).cpu()
                assert torch.equal(passed[known], by_values[known])


def test_the_interpreted_kernels_give_the_cpus_numbers():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.path.dirname(__file__)}
    # No bfloat16: the interpreter truncates it.
    code = "import test_triton_kernels as t; t.check('cpu', t.torch.float32, t.torch.float16)"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_compiled_kernels_give_the_cpus_numbers():
    check("cuda", torch.float32, torch.float16, torch.bfloat16)
