"""The matrix product through oneDNN against torch's own, and that torch's comes back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from megatron_lm_zh.runtime import onednn


@pytest.fixture
def products() -> Iterator[onednn.OneDnnProducts]:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    products = onednn.OneDnnProducts()
    yield products
    products.remove()


def _runs_onednn() -> bool:
    a = torch.ones(256, 256)
    with torch.profiler.profile() as profile:
        torch.mm(a, a)
    return any("_linear_pointwise" in event.key for event in profile.key_averages())


def test_removed_leaves_torch_as_before() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    products = onednn.OneDnnProducts()
    assert _runs_onednn()
    products.remove()
    assert not _runs_onednn()


@pytest.mark.parametrize(("m", "k", "n"), [(256, 128, 512), (300, 70, 1000), (3, 5, 7), (0, 4, 5), (3, 0, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_arrangement_is_the_product(
    products: onednn.OneDnnProducts, m: int, k: int, n: int, dtype: torch.dtype
) -> None:
    a, b = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
    tolerance = 0.3 if dtype is torch.bfloat16 else 1e-4
    for left in (a, a.t().contiguous().t()):
        for right in (b, b.t().contiguous().t()):
            result = torch.mm(left, right)
            assert result.dtype is dtype and result.shape == (m, n)
            torch.testing.assert_close(result.double(), a.double() @ b.double(), atol=tolerance, rtol=1e-2)


def test_gradients_go_through_it(products: onednn.OneDnnProducts) -> None:
    x, w = torch.randn(512, 128, requires_grad=True), torch.randn(256, 128, requires_grad=True)
    (x @ w.t()).square().sum().backward()
    residual = 2 * (x.detach().double() @ w.detach().double().t())
    assert x.grad is not None and w.grad is not None
    torch.testing.assert_close(x.grad.double(), residual @ w.detach().double(), atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(w.grad.double(), residual.t() @ x.detach().double(), atol=1e-2, rtol=1e-3)
