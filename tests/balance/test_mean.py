import torch
from laws._nasty import close

from anabranch.core.names import find


def test_it_is_the_gradient_of_the_mean_loss():
    theta = torch.randn(6, requires_grad=True)
    losses = torch.stack([(theta**2).sum(), theta.sin().sum(), theta[0] * 3])
    rows = torch.stack([torch.autograd.grad(loss, theta, retain_graph=True, materialize_grads=True)[0] for loss in losses])
    close(find("balance.mean")(rows), torch.autograd.grad(losses.mean(), theta)[0])
