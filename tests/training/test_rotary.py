import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from finlora.training.rotary import rotate


def test_values_and_gradients_are_the_librarys() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 7, 3, 16, requires_grad=True)
    angles = torch.randn(1, 7, 8).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    slopes = torch.randn(1, 7, 3, 16)

    def with_gradient(y: Tensor) -> tuple[Tensor, Tensor]:
        return y, torch.autograd.grad(y, x, slopes)[0]

    expected, _ = apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
    torch.testing.assert_close(with_gradient(rotate(x, cos, sin)), with_gradient(expected))
