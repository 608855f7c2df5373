"""The configuration that a user writes, as validated frozen dataclasses. Does not import torch."""
