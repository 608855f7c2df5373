"""Sparse mechanism-shift models of Perturb-seq: SAMS-VAE, CPA-VAE, SVAE+ and the conditional VAE."""


def __getattr__(name: str) -> str:
    # by name, so that a new version is no change of the code that trains (samsvae.study.code_digest)
    if name == "__version__":
        from importlib import import_module

        return import_module("samsvae.version").VERSION
    raise AttributeError(f"module 'samsvae' has no attribute {name!r}")
