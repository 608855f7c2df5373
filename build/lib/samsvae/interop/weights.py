"""Convert weights of the SAMS-VAE release to our weights and back, bit for bit; infer settings from names and shapes.

The state of a Lightning checkpoint holds a model ("model."), a guide (the approximate posterior, "guide.") and
constants of the prior, possibly with the prefix ``loss_module.`` and again with ``predictor.``. Letters:
T perturbations, L latents, G genes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samsvae.config.model import ModelConfig
from samsvae.config.vocabulary import MASKED
from samsvae.config.zoo import ROWS, TABLE_1
from samsvae.errors import CheckpointError, ConfigError, nearest, some
from samsvae.models.latents import CellState, Embedding
from samsvae.models.model import Model
from samsvae.models.networks import MLP
from samsvae.training.checkpoint import check_tensors, is_dense, outline

#: Name of a row in the golden numbers of the release -> name of the row in our zoo.
ROW_NAMES = {
    "cond_vae": "cond_vae",
    "svae_plus": "svae_plus",
    "cpa_mf": "cpa_vae_mf",
    "cpa_corr": "cpa_vae_corr",
    "sams_mf": "sams_vae_mf",
    "sams_corrE": "sams_vae_corr_e",
    "sams_corrz": "sams_vae_corr_z",
    "sams_corr": "sams_vae_corr",
}

#: Name of a latent (of its noise and its term) in the release -> our name, where they differ.
LATENT_NAMES = {"E": "embedding"}

#: Rows of the zoo that exist in the release.
NAMED = (*TABLE_1, "sams_vae_bb")

#: Settings by which the rows of the release differ.
SWITCHES = ("embedding", "mask", "effect", "guide_embedding", "encoder_reads")


def from_reference(
    state: Mapping[str, Any], row: str | None = None, *, config: Mapping[str, Any] | None = None
) -> Model:
    """The model with the weights of a state dictionary of the release, in evaluation mode.

    ``state``: tensors or arrays by name, or the content of a complete Lightning checkpoint. ``row``: the expected row
    of the zoo, by its name here or in the release. ``config``: settings of ``ModelConfig`` that are expected, or that
    cannot be inferred from weights (``temperature``). CheckpointError names the parameter, shape or setting that does
    not match.
    """
    weights = _cleaned(state)
    settings = _inferred(weights)
    if row is not None:
        _check_row(settings, row)
    settings |= _expected_settings(settings, config or {})
    n_perturbations, n_genes = _counts_of(weights, settings)
    try:
        model = outline(ModelConfig(**settings), n_genes, n_perturbations, weights)
    except ConfigError as error:
        raise CheckpointError(f"The settings inferred from the weights are not allowed: {error}") from None
    _refuse_alien(model.config)
    names = _names(model)
    _check_weights(weights, model, names)
    ours = {name: weights[theirs] for theirs, name in names.items()}
    model = Model(model.config, n_genes, n_perturbations)
    model.load_state_dict({**model.state_dict(), **ours})
    return model.eval()


def _check_row(settings: Mapping[str, Any], row: str) -> None:
    """CheckpointError if the row is unknown or the settings are those of another row."""
    wanted = ROW_NAMES.get(row, row)
    if wanted not in NAMED:
        raise CheckpointError(f"row: {row!r} is not known.{nearest(row, dict.fromkeys([*NAMED, *ROW_NAMES]))}")
    if (found := row_of(settings)) != wanted:
        raise CheckpointError(f"The weights belong to {_described(found)}, not to the row {wanted!r}.")


def _described(row: str | None) -> str:
    return "no row of the zoo" if row is None else f"the row {row!r}"


def _expected_settings(settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``config``; CheckpointError if one is not a setting or differs from the inferred settings."""
    known = [item.name for item in fields(ModelConfig)]
    if unknown := sorted(set(config) - set(known)):
        raise CheckpointError(f"config: {unknown[0]!r} is not a setting.{nearest(unknown[0], known)}")
    for name, value in config.items():
        if not _equal(settings.get(name, value), value):
            raise CheckpointError(f"{name} is {settings[name]!r} in the weights, but {value!r} is expected.")
    return dict(config)


def _check_weights(weights: Mapping[str, Tensor], model: Model, names: Mapping[str, str]) -> None:
    """CheckpointError unless the weights have the names, shapes, types and constants of the release for this model."""
    with torch.device("meta"):  # constants of the claimed size could fill the memory
        constants = _constants(model)
    ours = model.state_dict()
    expected = {theirs: ours[name] for theirs, name in names.items()} | constants
    if odd := sorted(set(weights) ^ set(expected)):
        problem = "lacks the parameter" if odd[0] in expected else "has the unknown parameter"
        row = _described(row_of(vars(model.config)))
        raise CheckpointError(f"The state {problem} {some(odd)}; it seems to belong to {row}.")
    check_tensors(weights, expected)
    for name, value in _constants(model).items():
        if not torch.equal(weights[name], value):
            raise CheckpointError(f"The parameter {name!r} differs from its constant value in the release.")


def to_reference(model: Model) -> dict[str, Tensor]:
    """The state dictionary that the release would have for a model, without a prefix: reverses ``from_reference``.

    CheckpointError if the release has no counterpart for the model's settings.
    """
    _refuse_alien(model.config)
    if model.levels:
        raise CheckpointError("The release has no counterpart for covariates, which this model reads.")
    ours = model.state_dict()
    state = _constants(model) | {theirs: ours[name].detach().clone() for theirs, name in _names(model).items()}
    inferred = _inferred(state)
    for name in SWITCHES:
        if inferred.get(name, getattr(ModelConfig, name)) != getattr(model.config, name):
            raise CheckpointError(f"The release has no counterpart for {name}: {getattr(model.config, name)!r}.")
    return state


def _refuse_alien(config: ModelConfig) -> None:
    """CheckpointError for settings that do not exist in the release and cannot be inferred from weights."""
    names = ("activation", "residual", "batch_norm", "mask_per_cell", "guide_mask_prob")
    alien = {name: getattr(config, name) for name in names if getattr(config, name) != getattr(ModelConfig, name)}
    alien |= {"input": "log"} if config.input == "log" else {}
    alien |= {"effect": "none"} if config.effect == "none" else {}
    if alien:
        raise CheckpointError(
            f"The release has no counterpart for {', '.join(f'{k}: {v!r}' for k, v in alien.items())}."
        )


def _equal(a: object, b: object) -> bool:
    """Whether two settings are equal; numbers are compared as float32."""
    if isinstance(a, float) and isinstance(b, int | float):
        return bool(np.float32(a) == np.float32(b))
    return a == b


def row_of(config: Mapping[str, Any]) -> str | None:
    """The row of the zoo with these settings; None if there is none in the release."""
    default = ModelConfig()
    switches = {name: config.get(name, getattr(default, name)) for name in SWITCHES}
    for name in NAMED:
        if switches == {switch: ROWS[name].model.get(switch, getattr(default, switch)) for switch in SWITCHES}:
            return name
    return None


# ---- names and constants -------------------------------------------------------------------------------------------


# more than 12 branches, because each setting that changes the names has one
def _names(model: Model) -> dict[str, str]:  # noqa: C901
    """Name of every weight in the release -> our name."""
    config = model.config
    at = {latent.name: f"latents.{i}" for i, latent in enumerate(model.latents)}
    names: dict[str, str] = {}

    def linear(theirs: str, ours: str) -> None:
        names.update({f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")})

    def mlp(theirs: str, ours: str, n_layers: int) -> None:
        for j in range(n_layers):
            linear(f"{theirs}.mlp.layers.{j}.0", f"{ours}.layers.{j}")

    def gaussian(theirs: str, ours: str, n_layers: int) -> None:
        mlp(theirs, f"{ours}.network", n_layers)
        linear(f"{theirs}.mean_encoder", f"{ours}.head.mean")
        linear(f"{theirs}.log_var_encoder", f"{ours}.head.log_var")

    if config.embedding == "learned":
        names["model.action_prior_mean"] = f"{at['embedding']}.loc"
    if config.likelihood == "nb":
        names["model.decoder.log_concentration"] = "likelihood.log_concentration"
    mlp("model.decoder", "decoder", config.n_layers)
    heads = {"nb": "normalized_mean_decoder.0", "poisson": "rate_decoder.0"}
    linear(f"model.decoder.{heads.get(config.likelihood, 'mean_encoder')}", "likelihood.mean")
    if config.likelihood == "normal":
        linear("model.decoder.log_var_encoder", "likelihood.log_var")
    if config.likelihood == "normal_fixed":
        names["model.decoder.log_var_encoder.log_var"] = "likelihood.log_var"
    if "mask" in at:
        names["guide.param_dict.q_mask_logits"] = f"{at.get('mask_prob', at['mask'])}.logits"
    if config.embedding == "random" and config.guide_embedding == "mean_field":
        names["guide.param_dict.q_E_loc"] = f"{at['embedding']}.loc"
        names["guide.param_dict.q_E_log_scale"] = f"{at['embedding']}.log_scale"
    elif config.embedding == "random":
        gaussian("guide.embedding_encoder", at["embedding"], config.embedding_layers)
    if config.input != "none":
        word = "log_" if config.input == "log_standardise" else ""
        names[f"guide.normalization_module.{word}mean"] = "input_mean"
        names[f"guide.normalization_module.{word}scale"] = "input_sd"
    state = "z_basal" if config.effect == "additive" else "z"
    gaussian(f"guide.{state}_encoder", at[state], config.n_layers)
    return names


def _constants(model: Model) -> dict[str, Tensor]:
    """Entries in a state of the release that are not weights, such as the prior, expanded to (T, L)."""
    config, size = model.config, (model.n_perturbations, model.config.n_latent)
    constants: dict[str, Tensor] = {}
    if config.embedding == "random":
        constants["model.p_E_loc"] = torch.zeros(size, dtype=torch.float32)
        constants["model.p_E_scale"] = torch.full(size, config.embedding_scale, dtype=torch.float32)
    if config.mask == "bernoulli":
        constants["model.p_mask_probs"] = torch.full(size, config.mask_prior, dtype=torch.float32)
    if config.mask == "beta_bernoulli":
        constants["model.mask_beta_concentration_1"] = torch.full(size, config.beta_a, dtype=torch.float32)
        constants["model.mask_beta_concentration_2"] = torch.full(size, config.beta_b, dtype=torch.float32)
    if config.guide_embedding == "given_mask":
        constants["guide.treatment_one_hot"] = torch.eye(model.n_perturbations, dtype=torch.float32)
    if config.mask in MASKED:
        constants["guide.gs_temperature"] = torch.full((1,), config.temperature, dtype=torch.float32)
    return constants


def _cleaned(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of one copy of model and guide, by name without the prefix."""
    state = state.get("state_dict", state)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise CheckpointError("The state is not a dictionary of tensors by name.")
    for prefix in ("loss_module.", "", "predictor."):
        found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        found = {name: value for name, value in found.items() if name.startswith(("model.", "guide."))}
        if any(name.startswith("model.decoder.") for name in found):
            break
    else:
        raise CheckpointError(f"The state has no 'model.decoder.' as in the release; it has {some(state)}.")
    if odd := sorted(name for name, value in found.items() if not _plain(value)):
        raise CheckpointError(f"The parameters {some(odd)} are not dense arrays of real numbers.")
    return {name: torch.as_tensor(value).detach() for name, value in found.items()}


def _plain(value: object) -> bool:
    """Whether a value is a dense tensor or array of real numbers."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind == "f"
    return isinstance(value, Tensor) and value.is_floating_point() and is_dense(value)


# ---- settings from weights -----------------------------------------------------------------------------------------


def _inferred(state: dict[str, Tensor]) -> dict[str, Any]:
    """The settings of ModelConfig that can be inferred from names, shapes and constants."""
    encoder = _one_of(state, "guide.z_basal_encoder", "guide.z_encoder")
    additive = encoder == "guide.z_basal_encoder"
    learned = "model.action_prior_mean" in state
    n_latent, width = _shape(state, f"{encoder}.mean_encoder.weight")
    reads = _shape(state, f"{encoder}.mlp.layers.0.0.weight")[1]
    head, likelihood = _head(state)
    n_genes = _shape(state, f"model.decoder.{head}.weight")[0]
    masked = "guide.param_dict.q_mask_logits" in state
    beta = "model.mask_beta_concentration_1" in state
    conditional = not additive and not learned
    found: dict[str, Any] = {
        "embedding": "random" if additive else "learned" if learned else "none",
        "mask": ("beta_bernoulli" if beta else "bernoulli") if masked else "none" if conditional else "ones",
        "effect": "additive" if additive else "prior_mean" if learned else "decoder_input",
        "encoder_reads": "x" if reads == n_genes else "x_dosage" if conditional else "x_offset",
        "likelihood": likelihood,
        "n_latent": n_latent,
        "n_layers": _depth(state, "model.decoder"),
        "width": width,
        "input": _input(state),
    }
    if (depth := _depth(state, encoder)) != found["n_layers"]:
        raise CheckpointError(
            f"The encoder has {depth} layers and the decoder {found['n_layers']}; both must have the same number."
        )
    if "guide.embedding_encoder.mlp.layers.0.0.weight" in state:
        found["guide_embedding"] = "given_mask"
        found["embedding_layers"] = _depth(state, "guide.embedding_encoder")
        found["embedding_width"] = _shape(state, "guide.embedding_encoder.mlp.layers.0.0.weight")[0]
    for setting, name in (
        ("embedding_scale", "model.p_E_scale"),
        ("mask_prior", "model.p_mask_probs"),
        ("beta_a", "model.mask_beta_concentration_1"),
        ("beta_b", "model.mask_beta_concentration_2"),
        ("temperature", "guide.gs_temperature"),
    ):
        if name in state:
            found[setting] = _constant(state, name)
    return found


def _counts_of(state: dict[str, Tensor], found: Mapping[str, Any]) -> tuple[int, int]:
    """The numbers of perturbations T and of genes G."""
    n_genes = _shape(state, f"model.decoder.{_head(state)[0]}.weight")[0]
    if found["effect"] == "decoder_input":
        return _shape(state, "model.decoder.mlp.layers.0.0.weight")[1] - found["n_latent"], n_genes
    tables = ("model.action_prior_mean", "guide.param_dict.q_mask_logits", "guide.param_dict.q_E_loc")
    return _shape(state, _one_of(state, *tables))[0], n_genes


def _head(state: dict[str, Tensor]) -> tuple[str, str]:
    """The name of the last layer of the decoder in the release, and the likelihood."""
    head = _one_of(
        state,
        *(f"model.decoder.{name}" for name in ("normalized_mean_decoder.0", "rate_decoder.0", "mean_encoder")),
    ).removeprefix("model.decoder.")
    fixed = "model.decoder.log_var_encoder.log_var" in state
    normal = "normal_fixed" if fixed else "normal"
    return head, {"normalized_mean_decoder.0": "nb", "rate_decoder.0": "poisson"}.get(head, normal)


def _input(state: dict[str, Tensor]) -> str:
    if "guide.normalization_module.log_mean" in state:
        return "log_standardise"
    return "standardise" if "guide.normalization_module.mean" in state else "none"


def _one_of(state: dict[str, Tensor], *names: str) -> str:
    """The first of these names that is a parameter or the beginning of one (before a dot)."""
    for name in names:
        if any(key == name or key.startswith(f"{name}.") for key in state):
            return name
    raise CheckpointError(f"The state has none of {', '.join(map(repr, names))}.")


def _shape(state: dict[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state or state[name].ndim != 2:
        problem = "lacks" if name not in state else f"has {state[name].ndim} dimensions instead of 2 in"
        raise CheckpointError(f"The state {problem} the parameter {name!r}.")
    return tuple(state[name].shape)


def _depth(state: dict[str, Tensor], network: str) -> int:
    return sum(key.startswith(f"{network}.mlp.layers.") and key.endswith(".weight") for key in state)


def _constant(state: dict[str, Tensor], name: str) -> float:
    """The single value of a constant table, as the shortest decimal that rounds to the same float32."""
    values = state[name].flatten()
    if not len(values) or (values != values[0]).any():
        raise CheckpointError(f"The parameter {name!r} must hold the same value everywhere.")
    return float(str(np.float32(values[0].item())))


# ---- other orders of genes and perturbations -----------------------------------------------------------------------


def reordered(model: Model, *, genes: Sequence[int] | None = None, perturbations: Sequence[int] | None = None) -> Model:
    """A copy of the model whose gene j is its gene ``genes[j]`` and whose perturbation t is its ``perturbations[t]``.

    ValueError unless each order holds every number once.
    """
    model = copy.deepcopy(model)
    for order, n in ((genes, model.n_genes), (perturbations, model.n_perturbations)):
        if order is not None and sorted(order) != list(range(n)):
            raise ValueError(f"an order of {n} items must hold each number from 0 to {n - 1} once")
    g = torch.as_tensor(range(model.n_genes) if genes is None else genes)
    t = torch.as_tensor(range(model.n_perturbations) if perturbations is None else perturbations)
    networks: list[tuple[MLP, tuple[Tensor | None, Tensor | None]]] = [(model.decoder, (None, t))]
    for latent in model.latents:
        if isinstance(latent, CellState):
            networks.append((latent.network, (g, t if latent.reads == "x_dosage" else None)))
            continue
        if isinstance(latent, Embedding) and latent.reads_mask:
            networks.append((latent.network, (None, t)))
        assert isinstance(latent, nn.Module)  # as all latents are
        for parameter in latent.parameters(recurse=False):
            parameter.data = parameter.data[t]
    for network, orders in networks:
        weight = network.layers[0].weight
        parts = zip(weight.data.split(network.sizes, dim=1), orders, strict=False)
        weight.data = torch.cat([p if order is None else p[:, order] for p, order in parts], dim=1)
    for tensor in (*model.likelihood.parameters(), model.input_mean, model.input_sd):
        tensor.data = tensor.data[g]
    return model
