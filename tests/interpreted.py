"""Run in a process of its own under TRITON_INTERPRET=1: the fused kernel on the cases of a file, to another file."""

import sys

import torch

from samsvae.kernels import _forward, has_triton, softmax_nb

cases = torch.load(sys.argv[1])
assert has_triton("cpu")
found = []
for logits, library, theta, x, weight in cases:
    logits.requires_grad_(), theta.requires_grad_()
    value = softmax_nb(logits, library, theta, x)
    found.append((value.detach(), *torch.autograd.grad((value * weight).sum(), (logits, theta))))
torch.save(found, sys.argv[2])

# the operators say of themselves what torch.compile needs to know, and a compiled function calls them
logits, library, theta, x, weight = cases[0]
torch.library.opcheck(_forward, (logits.detach().requires_grad_(), library, theta.detach().requires_grad_(), x))
value = torch.compile(softmax_nb, backend="aot_eager", fullgraph=True)(logits, library, theta, x)
again = value.detach(), *torch.autograd.grad((value * weight).sum(), (logits, theta))
assert all(torch.equal(a, b) for a, b in zip(again, found[0], strict=True))
