"""Weights of the release: inferred settings, refused files, and that no code of a file runs."""

from __future__ import annotations

import copy
import os
import pickle
import sys
import types
import zipfile
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import model, screen

from samsvae.cli import main
from samsvae.config.zoo import TABLE_1
from samsvae.data.cells import cells_of, encode
from samsvae.errors import CheckpointError
from samsvae.evaluation.model_effects import condition_means
from samsvae.interop.lightning import load_checkpoint
from samsvae.interop.runs import named_checkpoint, order_file
from samsvae.interop.weights import from_reference, reordered, row_of, to_reference
from samsvae.models.noise import given
from samsvae.training import checkpoint

ROWS = (*TABLE_1, "sams_vae_bb")


def shaken(name: str, **changes):
    """A model of a row in which no weight has its initial value, as after a training."""
    net = model(name, **changes)
    generator = torch.Generator().manual_seed(7)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))
    return net.eval()


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize("likelihood", ["nb", "poisson", "normal", "normal_fixed"])
def test_settings_and_weights_come_back(name, n_layers, likelihood):
    sizes = {"n_latent": 5, "width": 11, "embedding_layers": 4, "embedding_width": 7}
    priors = {"mask_prior": 0.03, "beta_a": 1.5, "beta_b": 7.0, "embedding_scale": 0.7, "temperature": 0.5}
    kind = {"likelihood": likelihood, "input": "standardise" if likelihood.startswith("normal") else "log_standardise"}
    net = shaken(name, n_layers=n_layers, **sizes, **priors, **kind)
    found = from_reference(to_reference(net), name)
    assert (found.n_genes, found.n_perturbations, found.training) == (9, 4, False)
    state = found.state_dict()
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    wanted, got = asdict(net.config), asdict(found.config)
    masked, random = net.config.mask.endswith("bernoulli"), net.config.embedding == "random"
    untold = {"mask_logit_init", "embedding_init", "dropout"}
    untold |= set() if net.config.guide_embedding == "given_mask" else {"embedding_layers", "embedding_width"}
    untold |= set() if net.config.mask == "bernoulli" else {"mask_prior"}
    untold |= set() if net.config.mask == "beta_bernoulli" else {"beta_a", "beta_b"}
    untold |= set() if masked else {"temperature"}
    untold |= set() if random else {"embedding_scale"}
    assert {key for key in wanted if wanted[key] != got[key]} <= untold
    assert row_of(got) == name


def test_prefixes_arrays_and_complete_checkpoints():
    net = shaken("sams_vae_corr")
    plain = to_reference(net)
    doubled = {f"loss_module.{k}": v for k, v in plain.items()} | {f"predictor.{k}": v + 1 for k, v in plain.items()}
    arrays = {k: v.numpy() for k, v in plain.items()}
    copied = {f"predictor.{k}": v for k, v in plain.items()}
    for state in (doubled, arrays, copied, {"state_dict": doubled, "epoch": 3}, {**plain, "predictor.model.x": 1}):
        found = from_reference(state).state_dict()
        assert all(torch.equal(found[key], value) for key, value in net.state_dict().items())


def test_a_model_does_not_share_memory_with_the_state():
    net = shaken("cpa_vae_mf")
    state = to_reference(net)
    state["model.decoder.log_concentration"].zero_()
    assert (net.likelihood.log_concentration != 0).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("guide.param_dict.q_E_loc"), "'guide.param_dict.q_E_loc'"),
        (lambda s: s.update({"guide.more": torch.zeros(1)}), "unknown parameter 'guide.more'"),
        (
            lambda s: s.update({"model.decoder.mlp.layers.1.0.weight": torch.zeros(16, 16)}),
            "1 layers and the decoder 2",
        ),
        (lambda s: s.update({"model.p_mask_probs": torch.rand(4, 4)}), "'model.p_mask_probs' must hold the same value"),
        (lambda s: s.update({"model.p_E_loc": torch.ones(4, 4)}), "'model.p_E_loc' differs from its constant value"),
        (
            lambda s: s.update({"model.p_mask_probs": torch.ones(4, 4)}),
            "from the weights are not allowed: mask_prior: 1.0",
        ),
        (lambda s: s["guide.param_dict.q_E_loc"].fill_(float("nan")), "'guide.param_dict.q_E_loc' has values"),
        (lambda s: s.update({"guide.param_dict.q_E_loc": torch.ones(4, 4, dtype=torch.complex64)}), "real numbers"),
        (lambda s: s.update({"guide.param_dict.q_E_loc": torch.ones(1, 1).expand(4, 4)}), "dense arrays"),
        (lambda s: s.update({"guide.param_dict.q_E_loc": np.array([None])}), "dense arrays"),
        (
            lambda s: s.update({"guide.param_dict.q_E_loc": torch.ones(5, 4)}),
            "'guide.param_dict.q_E_loc' has the shape (5, 4); allowed: (4, 4)",
        ),
        (lambda s: s.update({"guide.param_dict.q_E_loc": np.ones((4, 4), int)}), "dense arrays of real numbers"),
        (lambda s: s.update({"guide.param_dict.q_E_loc": torch.ones(4, 4).double()}), "type float64; allowed: float32"),
        (
            lambda s: s.update({"guide.param_dict.q_mask_logits": torch.zeros(300_000, 1)}),
            "'guide.param_dict.q_mask_logits' has the shape (300000, 1); allowed: (300000, 4)",
        ),
        (lambda s: s.update({"model.decoder.log_concentration": "text"}), "'model.decoder.log_concentration'"),
        (lambda s: s.update({3: torch.zeros(1)}), "not a dictionary of tensors by name"),
        (lambda s: s.update({"state_dict": 3}), "not a dictionary of tensors by name"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("model.decoder")], "no 'model.decoder.'"),
        (lambda s: [s.pop(k) for k in list(s) if "z_basal" in k], "none of 'guide.z_basal_encoder'"),
    ],
)
def test_a_state_that_does_not_match_is_refused(change, said):
    state = to_reference(shaken("sams_vae_mf"))
    change(state)
    with pytest.raises(CheckpointError) as error:
        from_reference(state)
    assert said in str(error.value)


def test_an_unexpected_row_or_setting_is_refused():
    state = to_reference(shaken("sams_vae_corr_e"))
    with pytest.raises(CheckpointError, match="row 'sams_vae_corr_e', not to the row 'sams_vae_corr'"):
        from_reference(state, "sams_corr")
    with pytest.raises(CheckpointError, match="Did you mean 'sams_vae_mf'"):
        from_reference(state, "sams_vae_m")
    with pytest.raises(CheckpointError, match=r"mask_prior is 0\.2 in the weights, but 0\.1"):
        from_reference(state, config={"mask_prior": 0.1})
    with pytest.raises(CheckpointError, match="Did you mean 'mask_prior'"):
        from_reference(state, config={"mask_priors": 0.1})
    assert from_reference(state, config={"embedding_init": 0.7}).config.embedding_init == 0.7
    for alien in ({"batch_norm": True}, {"activation": "relu"}, {"input": "log"}):
        with pytest.raises(CheckpointError, match=next(iter(alien))):
            from_reference(state, config=alien)
    third = to_reference(shaken("sams_vae_mf", mask_prior=1 / 3))
    assert from_reference(third, config={"mask_prior": 1 / 3}).config.mask_prior == 1 / 3


def test_the_unit_vectors_of_the_embedding_network_are_checked():
    state = to_reference(shaken("sams_vae_corr_e"))
    state["guide.treatment_one_hot"] = state["guide.treatment_one_hot"].flip(0)
    with pytest.raises(CheckpointError, match="treatment_one_hot"):
        from_reference(state)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sams_vae_mf", {"encoder_reads": "x_dosage"}),
        ("cpa_vae_mf", {"embedding": "learned"}),
        ("cpa_vae_mf", {"effect": "prior_mean"}),
    ],
)
def test_a_model_that_could_not_be_read_back_is_not_written(name, changes):
    with pytest.raises(CheckpointError):
        to_reference(model(name, **changes))


@pytest.mark.parametrize(("name", "what"), [("svae", "mask_per_cell"), ("vae", "batch_norm"), ("sams_vae_mf", "input")])
def test_settings_without_counterpart_in_the_release_are_named(name, what):
    changes = {"input": "log"} if what == "input" else {}
    with pytest.raises(CheckpointError, match=what):
        to_reference(model(name, **changes))


# ---- another order of names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", (*ROWS, "ivae", "svae_plus_lopez"))
def test_relabelling_commutes_with_everything(name):
    """With genes, perturbations and cells in another order, every term, gradient, mean and table is only reordered."""
    synthetic = screen(pairs=name not in ("svae_plus", "ivae", "svae_plus_lopez"))
    rng = np.random.default_rng(3)
    genes, order, cells = rng.permutation(9), rng.permutation(4), rng.permutation(120)
    net = shaken(name).double()
    other = reordered(net, genes=genes, perturbations=order)
    dosage = encode(synthetic, "sum")
    members = np.full_like(dosage.members, 4)
    for c, row in enumerate(dosage.members):
        back = [int(np.flatnonzero(order == t)[0]) for t in row if t < 4]
        members[c, : len(back)] = back
    theirs = replace(synthetic, counts=synthetic.counts[:, genes])
    first = double(cells_of(synthetic, cells, dosage))
    second = double(cells_of(theirs, cells, replace(dosage, members=members)))
    n, noise = 40, {}
    streams = torch.Generator().manual_seed(5)
    sizes = {latent.name: (4,) if latent.plate == "perturbation" else (n,) for latent in net.latents}
    for latent in net.latents:
        if latent.name == "cell_mask":
            sizes[latent.name] = (n, 1)
        noise[latent.name] = torch.randn(3, *sizes[latent.name], 4, generator=streams, dtype=torch.float64)
    moved = {key: value[:, order] if sizes[key] == (4,) else value for key, value in noise.items()}
    at = slice(0, n)
    ours, turned = net.log_terms(first.batch(at), noise=noise), other.log_terms(second.batch(at), noise=moved)
    for key in ours:
        torch.testing.assert_close(ours[key], turned[key])
    for terms in (ours, turned):
        sum(terms.values()).mean().backward()
    want = reordered(gradients(net), genes=genes, perturbations=order).state_dict()
    for key, value in gradients(other).state_dict().items():
        torch.testing.assert_close(value, want[key])
    for key, table in net.perturbation_tables().items():
        torch.testing.assert_close(table[order], other.perturbation_tables()[key])
    torch.testing.assert_close(net.posterior_mean(first), other.posterior_mean(second))
    # cells in another order
    back = torch.randperm(n, generator=streams)
    shuffled = {key: value[:, back] if sizes[key][0] == n else value for key, value in noise.items()}
    again = net.log_terms(first.batch(back), noise=shuffled)
    for key in ours:
        torch.testing.assert_close(again[key], ours[key][:, back])


def double(cells):
    return replace(cells, library=cells.library.double(), share=cells.share.double())


def gradients(net):
    """A copy of the model with gradients in place of weights."""
    twin = copy.deepcopy(net)
    for parameter, source in zip(twin.parameters(), net.parameters(), strict=True):
        parameter.data = torch.zeros_like(source) if source.grad is None else source.grad.clone()
    return twin


def test_an_order_must_hold_every_number_once():
    with pytest.raises(ValueError, match="order of 4"):
        reordered(model("cpa_vae_mf"), perturbations=[0, 1, 1, 3])


# ---- files ---------------------------------------------------------------------------------------------------------


def lightning_file(path: Path, state: dict, **more) -> Path:
    """A file as Lightning writes it, with objects of modules that are not installed."""
    module = types.ModuleType("pytorch_lightning.utilities.parsing")

    class AttributeDict(dict):
        pass

    AttributeDict.__module__, AttributeDict.__qualname__ = module.__name__, "AttributeDict"
    module.AttributeDict = AttributeDict
    parents = ("pytorch_lightning", "pytorch_lightning.utilities")
    sys.modules |= {name: types.ModuleType(name) for name in parents} | {module.__name__: module}
    try:
        hyper = AttributeDict(seed=1, path=Path("x"), scale=np.float32(3), table=np.arange(3), kinds={1, 2})
        content = {
            "epoch": 3, "global_step": 150_000, "pytorch-lightning_version": "1.9", "state_dict": state,
            "hyper_parameters": hyper, "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}}],
            "dtype": torch.float32, "callbacks": {"a": hyper}, **more,
        }  # fmt: skip
        torch.save(content, path)
    finally:
        for name in (*parents, module.__name__):
            del sys.modules[name]
    return path


def test_a_lightning_checkpoint_is_read_without_lightning(tmp_path):
    net = shaken("sams_vae_corr")
    state = {f"loss_module.{k}": v for k, v in to_reference(net).items()}
    found = load_checkpoint(lightning_file(tmp_path / "best.ckpt", state))
    assert set(found) == set(state) and all(torch.equal(found[key], value) for key, value in state.items())
    assert "pytorch_lightning" not in sys.modules
    assert torch.equal(from_reference(found).latents[0].logits, net.latents[0].logits)


class Hostile:
    """A pickle that calls a function when it is read."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def hostile_files(folder: Path, proof: Path) -> dict[str, Path]:
    state = to_reference(shaken("cpa_vae_mf"))
    calls = {
        "system": Hostile(os.system, f"touch {proof}"),
        "mkdir": Hostile(os.mkdir, str(proof)),
        "eval": Hostile(eval, f"open({str(proof)!r}, 'w')"),
        "getattr": Hostile(getattr, "text", "upper"),
        "partial": Hostile(partial, os.mkdir, str(proof)),
        "load": Hostile(torch.load, str(proof)),
        "torch": Hostile(torch.hub.load, str(proof), "x"),
    }
    files = {name: lightning_file(folder / f"{name}.ckpt", state, extra=call) for name, call in calls.items()}
    inside = folder / "inside.ckpt"
    torch.save({"state_dict": {**state, "model.x": Hostile(os.mkdir, str(proof))}}, inside)
    plain = folder / "plain.ckpt"
    plain.write_bytes(pickle.dumps(Hostile(os.mkdir, str(proof))))
    old = folder / "old.ckpt"
    torch.save({"state_dict": state, "x": Hostile(os.mkdir, str(proof))}, old, _use_new_zipfile_serialization=False)
    script = folder / "script.ckpt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    return files | {"twofold": twofold(folder), "inside": inside, "plain": plain, "old": old, "script": script}


def twofold(folder: Path) -> Path:
    """An archive with two directories: Python reads the harmless one, torch the script before it."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / "a.pt")
    torch.save({"state_dict": {}}, folder / "b.pt")
    path = folder / "twofold.ckpt"
    path.write_bytes((folder / "a.pt").read_bytes() + (folder / "b.pt").read_bytes())
    return path


KINDS = (
    "system", "mkdir", "eval", "getattr", "partial", "load", "torch", "inside", "plain", "old", "script", "twofold"
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_file_is_refused_and_does_not_run(kind, tmp_path):
    proof = tmp_path / "proof"
    path = hostile_files(tmp_path, proof)[kind]
    with pytest.raises(CheckpointError, match=rf"{kind}\.ckpt: not a checkpoint, or damaged") as error:
        load_checkpoint(path)
    assert not proof.exists() and len(str(error.value).splitlines()) == 1


def test_compressed_parts_are_refused(tmp_path):
    """A small file could fill the memory."""
    path = lightning_file(tmp_path / "a.ckpt", to_reference(shaken("cpa_vae_mf")))
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        load_checkpoint(tmp_path / "b.ckpt")


def test_damaged_and_other_files_are_refused(tmp_path):
    path = lightning_file(tmp_path / "a.ckpt", to_reference(shaken("cpa_vae_mf")))
    whole = path.read_bytes()
    for name, data in (
        ("empty", b""),
        ("cut", whole[: len(whole) // 2]),
        ("flipped", whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("a.txt", "a")
    torch.save([1], tmp_path / "list.ckpt")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "numbers.ckpt")
    for name, said in (
        ("other.zip", "not a checkpoint"),
        ("list.ckpt", "'list' is not known"),
        ("numbers.ckpt", "state_dict"),
    ):
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "absent.ckpt")


# ---- as weights of a screen ----------------------------------------------------------------------------------------


def test_weights_are_reordered_to_the_order_of_the_screen(tmp_path):
    synthetic, net = screen(), shaken("sams_vae_corr")
    genes, order = np.random.default_rng(1).permutation(9), np.array([2, 0, 3, 1])
    path = tmp_path / "theirs.ckpt"
    lightning_file(path, to_reference(reordered(net, genes=genes, perturbations=order)))
    order_file(path, "genes").write_text("\n".join(synthetic.genes[genes]) + "\n")
    order_file(path, "perturbations").write_text("\n".join(synthetic.perturbations[order]) + "\n")
    found = named_checkpoint(path, synthetic, "sum")
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in found.model.state_dict().items())
    assert found.genes == tuple(synthetic.genes) and found.perturbations == ("a", "b", "c", "d")
    order_file(path, "genes").write_text("\n".join(synthetic.genes[genes][1:]) + "\n")
    with pytest.raises(
        CheckpointError, match=r"genes\.txt: the genes differ from those of the screen: only one of them has 'gene"
    ):
        named_checkpoint(path, synthetic, "sum")


def test_weights_of_another_screen_are_refused(tmp_path):
    path = lightning_file(tmp_path / "theirs.ckpt", to_reference(shaken("cpa_vae_mf")))
    with pytest.raises(CheckpointError, match=r"theirs\.ckpt: the weights have 9 genes, the screen has 8"):
        named_checkpoint(path, screen(genes=8), "sum")
    with pytest.raises(CheckpointError, match="have 4 perturbations, the screen has 5"):
        named_checkpoint(path, screen(), "unique")
    with pytest.raises(CheckpointError, match=r"theirs\.ckpt: n_latent is 4"):
        named_checkpoint(path, screen(), "sum", config={"n_latent": 3})
    twice = replace(screen(), genes=np.array(["gene0", "gene0", *"abcdefg"]))
    with pytest.raises(CheckpointError, match="'genes' has names more than once: 'gene0'"):
        named_checkpoint(path, twice, "sum")


def test_the_import_command_writes_our_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    synthetic, net = screen(), shaken("sams_vae_corr")
    net.fit_inputs(cells_of(synthetic, np.arange(120), encode(synthetic, "sum")))
    lightning_file(tmp_path / "best.ckpt", to_reference(net))
    np.savez(
        tmp_path / "arrays.npz", **{name: value for name, value in vars(synthetic).items() if name != "covariates"}
    )
    assert main(["import", "best.ckpt", "arrays.npz", "model.pt"]) == 0
    found = checkpoint.load(tmp_path / "model.pt")
    assert found.facts["model"] == "sams_vae_corr" and found.perturbations == ("a", "b", "c", "d")
    members = encode(synthetic, "sum").members
    np.testing.assert_array_equal(condition_means(found.model, members), condition_means(net, members))
    lightning_file(tmp_path / "turned.ckpt", to_reference(reordered(net, genes=[1, 0, *range(2, 9)])))
    assert main(["import", "turned.ckpt", "arrays.npz", "model.pt"]) == 1
    said = capsys.readouterr().err
    assert "2 of 9 genes ('gene0', 'gene1')" in said and "turned.ckpt.genes.txt" in said and said.count("\n") == 1
    assert main(["import", "none.ckpt", "arrays.npz", "model.pt"]) == 1
    assert capsys.readouterr().err == "CheckpointError: none.ckpt: no such file.\n"


def test_given_noise_must_be_complete():
    net, synthetic = model("sams_vae_mf"), screen()
    batch = cells_of(synthetic, np.arange(10), encode(synthetic, "sum")).batch(slice(None))
    with pytest.raises(ValueError, match="no noise is given for 'embedding'"):
        net.log_terms(batch, noise={"mask": torch.zeros(2, 4, 4)})
    with pytest.raises(ValueError, match="noise of 'mask' has the shape"):
        net.log_terms(batch, noise={"mask": torch.zeros(2, 5, 4)})
    with pytest.raises(ValueError, match=r"values of 'mask' have the shape \(4, 4\); needed: \(4, 4, 4\)"):
        net.log_terms(batch, values={"mask": torch.zeros(4, 4)})
    with pytest.raises(ValueError, match="no latent is called 'E'"):
        net.log_terms(batch, noise={"E": torch.zeros(2, 4, 4)})
    assert given({"a": torch.zeros(1)})("a", "normal", (1,)).shape == (1,)
