"""Sparse mechanism-shift models of Perturb-seq: SAMS-VAE, CPA-VAE, SVAE+ and the conditional VAE.

from samsvae import fit, load, pl
"""

__all__ = ["Fitted", "SamsvaeError", "__version__", "fit", "load", "pl"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used.

    By string, because samsvae.study.code_digest follows import statements: this file must not make every script of the
    workflow depend on samsvae.api, or on the version. Type checkers read __init__.pyi instead.
    """
    modules = {"__version__": ("version", "VERSION"), "SamsvaeError": ("errors", name), "Fitted": ("fitted", name)}
    if name not in __all__:
        raise AttributeError(f"module 'samsvae' has no attribute {name!r}")
    from importlib import import_module

    if name == "pl":
        return import_module("samsvae.pl")
    module, attribute = modules.get(name, ("api", name))
    return getattr(import_module(f"samsvae.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
