"""Runs in a separate process with TRITON_INTERPRET=1: applies the fused kernel to cases in a file."""

import sys

import torch

from samsvae.ops.softmax_nb import KERNELS, _forward, has_triton, softmax_nb

cases = torch.load(sys.argv[1])
assert has_triton("cpu", KERNELS)
found = []
for product, bias, library, theta, x, weight, floor in cases:
    given = product, bias, theta = [part.requires_grad_() for part in (product, bias, theta)]
    value = softmax_nb(product, bias, library, theta, x, floor)
    found.append((value.detach(), *torch.autograd.grad((value * weight).sum(), given)))
torch.save(found, sys.argv[2])

# the operators declare what torch.compile needs, and a compiled function calls them
product, bias, library, theta, x, weight, _ = cases[0]
given = product, bias, theta = [part.detach().requires_grad_() for part in (product, bias, theta)]
torch.library.opcheck(_forward, (product[None], bias[None], library[None], theta[None], x[None], 1e-4))
value = torch.compile(softmax_nb, backend="aot_eager", fullgraph=True)(product, bias, library, theta, x, 1e-4)
again = value.detach(), *torch.autograd.grad((value * weight).sum(), given)
assert all(torch.equal(a, b) for a, b in zip(again, found[0], strict=True))


def floored(*parts):
    return softmax_nb(*parts, 1e-4)


# several runs in one launch, by torch.func.vmap, equal each run alone
product, bias, library, theta, x, weight = (part.detach() for part in cases[1][:-1])
stack = torch.stack([product, product.flip(0)]).requires_grad_()
biases, thetas = (torch.stack([part, part + 1.0]).requires_grad_() for part in (bias, theta))
libraries, counts = torch.stack([library, library.flip(0)]), torch.stack([x, x.flip(0)], -1)
runs = torch.func.vmap(floored, (0, 0, 0, 0, 2))(stack, biases, libraries, thetas, counts)
again = torch.func.vmap(torch.func.vmap(floored, (0, 0, 0, 0, 2)), (0, 0, None, 0, None))
assert torch.equal(again(stack[None], biases[None], libraries, thetas[None], counts)[0], runs)
gradients = torch.autograd.grad((runs * weight).sum(), (stack, biases, thetas))
for run in range(2):
    value = softmax_nb(stack[run], biases[run], libraries[run], thetas[run], counts[..., run], 1e-4)
    alone = torch.autograd.grad((value * weight).sum(), (stack, biases, thetas))
    assert torch.equal(value, runs[run]) and all(
        torch.equal(a[run], b[run]) for a, b in zip(gradients, alone, strict=True)
    )
