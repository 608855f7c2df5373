"""Sparse mechanism-shift models of Perturb-seq: SAMS-VAE, CPA-VAE, SVAE+ and the conditional VAE."""

__version__ = "0.1.0"
