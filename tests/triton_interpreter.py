"""Runs in a separate process with TRITON_INTERPRET=1: applies the fused kernel to cases in a file."""

import sys

import torch

from samsvae.ops.softmax_nb import _forward, has_triton, softmax_nb

cases = torch.load(sys.argv[1])
assert has_triton("cpu")
found = []
for logits, library, theta, x, weight, floor in cases:
    logits.requires_grad_(), theta.requires_grad_()
    value = softmax_nb(logits, library, theta, x, floor)
    found.append((value.detach(), *torch.autograd.grad((value * weight).sum(), (logits, theta))))
torch.save(found, sys.argv[2])

# the operators declare what torch.compile needs, and a compiled function calls them
logits, library, theta, x, weight, _ = cases[0]
logits, theta = (part.detach().requires_grad_() for part in (logits, theta))
torch.library.opcheck(_forward, (logits[None], library[None], theta[None], x[None], 1e-4))
value = torch.compile(softmax_nb, backend="aot_eager", fullgraph=True)(logits, library, theta, x, 1e-4)
again = value.detach(), *torch.autograd.grad((value * weight).sum(), (logits, theta))
assert all(torch.equal(a, b) for a, b in zip(again, found[0], strict=True))


def floored(*parts):
    return softmax_nb(*parts, 1e-4)


# several runs in one launch, by torch.func.vmap, equal each run alone
logits, library, theta, x, weight, _ = cases[1]
stack = torch.stack([logits.detach(), logits.detach().flip(0)]).requires_grad_()
thetas = torch.stack([theta.detach(), theta.detach() + 1.0]).requires_grad_()
libraries, counts = torch.stack([library, library.flip(0)]), torch.stack([x, x.flip(0)], -1)
runs = torch.func.vmap(floored, (0, 0, 0, 2))(stack, libraries, thetas, counts)
again = torch.func.vmap(torch.func.vmap(floored, (0, 0, 0, 2)), (0, None, 0, None))
assert torch.equal(again(stack[None], libraries, thetas[None], counts)[0], runs)
gradients = torch.autograd.grad((runs * weight).sum(), (stack, thetas))
for run in range(2):
    value = softmax_nb(stack[run], libraries[run], thetas[run], counts[..., run], 1e-4)
    alone = torch.autograd.grad((value * weight).sum(), (stack, thetas))
    assert torch.equal(value, runs[run]) and all(
        torch.equal(a[run], b[run]) for a, b in zip(gradients, alone, strict=True)
    )
