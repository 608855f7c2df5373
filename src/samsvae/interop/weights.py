"""Weights of the SAMS-VAE release to weights of ours and back, bit for bit; settings read off names and shapes.

The state of a Lightning checkpoint holds a model ("model."), a guide ("guide.") and constants of the prior, maybe under
the prefix ``loss_module.`` and once more under ``predictor.``. Letters: T perturbations, L latents, G genes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from samsvae.config.model import ModelConfig
from samsvae.config.vocabulary import MASKED
from samsvae.config.zoo import ROWS, TABLE_1
from samsvae.errors import CheckpointError, ConfigError, nearest, some
from samsvae.models.model import Model
from samsvae.models.networks import MLP

#: Rows of the release by the names of its golden numbers.
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

#: Latents that the release calls by another name, as names of noise and of terms.
LATENT_NAMES = {"E": "embedding"}

#: Rows of the zoo that the release has.
NAMED = (*TABLE_1, "sams_vae_bb")

SWITCHES = ("embedding", "mask", "effect", "guide_embedding", "encoder_reads")


def from_reference(
    state: Mapping[str, object], row: str | None = None, *, config: Mapping[str, object] | None = None
) -> Model:
    """The model of a release's state dictionary, with its weights, in evaluation mode.

    ``state``: tensors or arrays by name, or the content of a whole Lightning checkpoint. ``row``: the row that it must
    be, by our name or the release's. ``config``: settings of ``ModelConfig`` that it must have, or that weights do not
    tell (``temperature``). CheckpointError names the parameter, shape or setting that does not fit.
    """
    state, config = _cleaned(state), dict(config or {})
    found = _inferred(state)
    if row is not None:
        wanted = ROW_NAMES.get(row, row)
        if wanted not in NAMED:
            raise CheckpointError(f"row: {row!r} is not known.{nearest(row, dict.fromkeys([*NAMED, *ROW_NAMES]))}")
        ours = row_of(found)
        if ours != wanted:
            raise CheckpointError(f"The weights are of the row {ours or 'of no name'!r}, not of {wanted!r}.")
    known = [item.name for item in fields(ModelConfig)]
    if unknown := sorted(set(config) - set(known)):
        raise CheckpointError(f"config: {unknown[0]!r} is not a setting.{nearest(unknown[0], known)}")
    for name, value in config.items():
        if not _equal(found.setdefault(name, value), value):
            raise CheckpointError(f"{name} is {found[name]!r} in the weights, but {value!r} is asked for.")
        found[name] = value
    n_perturbations, n_genes = _counts_of(state, found)
    try:
        model = Model(ModelConfig(**found), n_genes, n_perturbations)
    except ConfigError as error:
        raise CheckpointError(f"The settings that the weights tell make no model: {error}") from None
    _refuse_alien(model.config)
    names, ours, constants = _names(model), model.state_dict(), _constants(model)
    expected = {theirs: tuple(ours[name].shape) for theirs, name in names.items()}
    expected |= {name: tuple(value.shape) for name, value in constants.items()}
    if odd := sorted(set(state) ^ set(expected)):
        kind = "misses the parameter" if odd[0] in expected else "has the unknown parameter"
        raise CheckpointError(f"The state {kind} {some(odd)}; the row seems to be {row_of(found) or 'of no name'!r}.")
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise CheckpointError(f"The parameter {name!r} has the shape {tuple(state[name].shape)}; allowed: {shape}.")
    for name, value in constants.items():
        if not torch.equal(state[name].to(value.dtype), value):
            raise CheckpointError(f"The parameter {name!r} is not the constant that it should be.")
    for name in names:
        if not torch.isfinite(state[name]).all():
            raise CheckpointError(f"The parameter {name!r} has values that are not finite.")
    model.load_state_dict({**ours, **{name: state[theirs] for theirs, name in names.items()}})
    return model.eval()


def to_reference(model: Model) -> dict[str, Tensor]:
    """The release's state dictionary of a model, the reverse of ``from_reference``, without a prefix.

    CheckpointError where the release has no counterpart of the model's settings.
    """
    _refuse_alien(model.config)
    ours = model.state_dict()
    state = _constants(model) | {theirs: ours[name].detach().clone() for theirs, name in _names(model).items()}
    told = _inferred(state)
    for name in SWITCHES:
        if told.get(name, getattr(ModelConfig, name)) != getattr(model.config, name):
            raise CheckpointError(f"The release has no counterpart of {name}: {getattr(model.config, name)!r}.")
    return state


def _refuse_alien(config: ModelConfig) -> None:
    """CheckpointError for settings that the release does not have and its weights cannot tell."""
    names = ("activation", "residual", "batch_norm", "mask_per_cell", "guide_mask_prob")
    alien = {name: getattr(config, name) for name in names if getattr(config, name) != getattr(ModelConfig, name)}
    alien |= {"input": "log"} if config.input == "log" else {}
    alien |= {"effect": "none"} if config.effect == "none" else {}
    if alien:
        raise CheckpointError(
            f"The release has no counterpart of {', '.join(f'{k}: {v!r}' for k, v in alien.items())}."
        )


def _equal(a: object, b: object) -> bool:
    """Whether two settings are equal; numbers, as far as float32 can tell."""
    if isinstance(a, float) and isinstance(b, int | float):
        return bool(np.float32(a) == np.float32(b))
    return a == b


def row_of(config: Mapping[str, object]) -> str | None:
    """The row of the zoo with these switches; None where it has no name."""
    default = ModelConfig()
    switches = {name: config.get(name, getattr(default, name)) for name in SWITCHES}
    for name in NAMED:
        if switches == {switch: ROWS[name].model.get(switch, getattr(default, switch)) for switch in SWITCHES}:
            return name
    return None


# ---- names and constants -------------------------------------------------------------------------------------------


def _names(model: Model) -> dict[str, str]:
    """The release's name of every weight -> ours."""
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
    """What the release keeps in its state though it is no weight: the prior, spread out to (T, L), and such."""
    config, size = model.config, (model.n_perturbations, model.config.n_latent)
    constants: dict[str, Tensor] = {}
    if config.embedding == "random":
        constants["model.p_E_loc"] = torch.zeros(size)
        constants["model.p_E_scale"] = torch.full(size, config.embedding_scale)
    if config.mask == "bernoulli":
        constants["model.p_mask_probs"] = torch.full(size, config.mask_prior)
    if config.mask == "beta_bernoulli":
        constants["model.mask_beta_concentration_1"] = torch.full(size, config.beta_a)
        constants["model.mask_beta_concentration_2"] = torch.full(size, config.beta_b)
    if config.guide_embedding == "given_mask":
        constants["guide.treatment_one_hot"] = torch.eye(model.n_perturbations)
    if config.mask in MASKED:
        constants["guide.gs_temperature"] = torch.full((1,), config.temperature)
    return constants


def _cleaned(state: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of one copy of model and guide, by their names without a prefix."""
    state = state.get("state_dict", state)
    if not isinstance(state, Mapping):
        raise CheckpointError("The state is not a dictionary of tensors by name.")
    for prefix in ("loss_module.", "", "predictor."):
        found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        found = {name: value for name, value in found.items() if name.startswith(("model.", "guide."))}
        if any(name.startswith("model.decoder.") for name in found):
            break
    else:
        raise CheckpointError(f"The state has no 'model.decoder.', as the release's have; it has {some(state)}.")
    if odd := sorted(name for name, value in found.items() if not _plain(value)):
        raise CheckpointError(f"The parameters {some(odd)} are not dense arrays of real numbers.")
    return {name: torch.as_tensor(value).detach() for name, value in found.items()}


def _plain(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "fi"
    if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
        return False
    # a file may claim any shape with strides of 0
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()


# ---- settings from weights -----------------------------------------------------------------------------------------


def _inferred(state: dict[str, Tensor]) -> dict[str, object]:
    """Settings of ModelConfig as far as names, shapes and constants tell them."""
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
    found: dict[str, object] = {
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
            f"The encoder has {depth} layers and the decoder {found['n_layers']}; allowed: as many of both."
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


def _counts_of(state: dict[str, Tensor], found: Mapping[str, object]) -> tuple[int, int]:
    """T and G."""
    n_genes = _shape(state, f"model.decoder.{_head(state)[0]}.weight")[0]
    if found["effect"] == "decoder_input":
        return _shape(state, "model.decoder.mlp.layers.0.0.weight")[1] - found["n_latent"], n_genes
    tables = ("model.action_prior_mean", "guide.param_dict.q_mask_logits", "guide.param_dict.q_E_loc")
    return _shape(state, _one_of(state, *tables))[0], n_genes


def _head(state: dict[str, Tensor]) -> tuple[str, str]:
    """The name of the likelihood's last layer in the release, and the likelihood."""
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
    """The first name that a parameter has or begins with."""
    for name in names:
        if any(key == name or key.startswith(f"{name}.") for key in state):
            return name
    raise CheckpointError(f"The state has none of {', '.join(map(repr, names))}.")


def _shape(state: dict[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state or state[name].ndim != 2:
        what = "misses" if name not in state else f"has {state[name].ndim} instead of 2 dimensions in"
        raise CheckpointError(f"The state {what} the parameter {name!r}.")
    return tuple(state[name].shape)


def _depth(state: dict[str, Tensor], network: str) -> int:
    return sum(key.startswith(f"{network}.mlp.layers.") and key.endswith(".weight") for key in state)


def _constant(state: dict[str, Tensor], name: str) -> float:
    """The one value of a constant table, as the shortest decimal that is the same float32."""
    values = state[name].flatten()
    if not len(values) or (values != values[0]).any():
        raise CheckpointError(f"The parameter {name!r} must hold one value everywhere.")
    return float(str(np.float32(values[0].item())))


# ---- weights as a run of the workflow ------------------------------------------------------------------------------


def reordered(model: Model, *, genes: Sequence[int] | None = None, perturbations: Sequence[int] | None = None) -> Model:
    """A copy whose gene j was gene ``genes[j]`` of the model, and its perturbation t ``perturbations[t]``."""
    model = copy.deepcopy(model)
    for order, n in ((genes, model.n_genes), (perturbations, model.n_perturbations)):
        if order is not None and sorted(order) != list(range(n)):
            raise ValueError(f"an order of {n} must hold each number from 0 to {n - 1} once")
    g = torch.as_tensor(range(model.n_genes) if genes is None else genes)
    t = torch.as_tensor(range(model.n_perturbations) if perturbations is None else perturbations)
    networks: list[tuple[MLP, tuple]] = [(model.decoder, (None, t))]
    for latent in model.latents:
        if latent.plate == "cell":
            networks.append((latent.network, (g, t if latent.reads == "x_dosage" else None)))
            continue
        if hasattr(latent, "network"):
            networks.append((latent.network, (None, t)))
        for parameter in latent.parameters(recurse=False):
            parameter.data = parameter.data[t]
    for network, orders in networks:
        weight = network.layers[0].weight
        parts = zip(weight.data.split(network.sizes, dim=1), orders, strict=False)
        weight.data = torch.cat([p if order is None else p[:, order] for p, order in parts], dim=1)
    for tensor in (*model.likelihood.parameters(), model.input_mean, model.input_sd):
        tensor.data = tensor.data[g]
    return model
