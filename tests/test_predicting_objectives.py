"""The objectives that predict features or codes: their losses are their formulas, and training them is exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from web_page import Page

from melmask.config import M2DConfig
from melmask.embedding.encoder import load
from melmask.errors import ConfigError
from melmask.figures.training import ReconstructionPictures
from melmask.objectives.base import Objective, build_objective
from melmask.objectives.m2d import decay_at
from melmask.pages.run import write_run_page
from melmask.train.bench import TrainingStep
from melmask.train.initial import initial_weights
from melmask.train.pretrain import pretrain
from melmask.train.record import read_metrics

M2D, CODES = "objective.kind=m2d", "objective.kind=random_projection"
MIXTURE = ("m2d.reconstruction_weight=0.3", "m2d.feature_weight=0.7")
SMALL = ("random_projection.codes=32", "random_projection.codebooks=3", "random_projection.dimensions=5")
KINDS = {"m2d": (M2D,), "mixture": (M2D, *MIXTURE), "codes": (CODES, *SMALL)}
SHAPES = {
    "plain": (),
    "without CLS": ("model.cls_token=false",),
    "several masks": ("masking.masks_per_crop=3", "masking.ratio=0.6"),
    "resolutions": ("model.resolutions=2", "masking.normalize_target=true"),
}
DIFFERENT = {"m2d.first_decay=0.5", "m2d.last_decay=0.9", "m2d.decay_steps=4"}


def batch(objective, config, crops=8):
    torch.manual_seed(0)
    return torch.randn(crops, config.model.bands, config.model.frames), objective.draw(0, 0, 1)


def shaken(objective):
    """The objective with a target that differs from the network, as it does from the first step on."""
    for name, tensor in objective.module.named_parameters():
        if name.startswith("target."):
            tensor.data += 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name)))
    return objective


def literal_loss(objective, config, logmel, masked):
    """The loss of one view after the other, by the formulas of the papers."""
    parts, model, losses = dict(objective.module.named_children()), config.model, []
    decoder = parts.get("decoder", parts["network"].decoder)
    head = parts.get("head", decoder.predict)
    first = int(model.cls_token)
    for row, hidden in enumerate(masked):
        crop = logmel[row // config.masking.masks_per_crop][None]
        patches = parts["network"].encoder.patches_of(crop)
        seen, unseen = (torch.nonzero(mask).T for mask in (~hidden, hidden))
        encoded = parts["network"].encoder.encode_visible(patches, seen)
        tokens = decoder.tokens(encoded, seen, unseen, parts["network"].encoder.grid)[0]
        values = patches[0, hidden]
        if config.masking.normalize_target:
            each = values.view(len(values), model.resolutions, -1)
            values = ((each - each.mean(2, True)) / (each.var(2, keepdim=True) + 1e-6).sqrt()).flatten(1)
        if config.objective.kind == "m2d":
            target = parts["target"].encoder.encode_visible(patches, unseen)[0, first:]
            target = (target - target.mean(1, True)) / (target.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
            feature = (2 - 2 * functional.cosine_similarity(head(tokens), target)).mean()
            loss = config.m2d.feature_weight * feature
            if config.m2d.reconstruction_weight:
                loss = loss + config.m2d.reconstruction_weight * (decoder.predict(tokens) - values).square().mean()
            losses.append(loss)
        else:
            quantizer, logits = parts["quantizer"], head(tokens).view(len(tokens), 3, 32)
            for book in range(3):
                projected = functional.normalize(values @ quantizer.projection[book].T, dim=1)
                code = torch.cdist(projected, quantizer.codes[book]).argmin(1)
                losses.append(functional.cross_entropy(logits[:, book], code))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_formula_and_reaches_what_is_trained(configure, kind, shape):
    config = configure(*KINDS[kind], *SHAPES[shape])
    objective = shaken(build_objective(config))
    assert isinstance(objective, Objective)
    logmel, masked = batch(objective, config)
    loss = objective.loss(logmel, masked)
    torch.testing.assert_close(loss, literal_loss(objective, config, logmel, masked))
    loss.backward()
    # Several processes stop at a parameter without a gradient, and the target must not have one.
    for name, parameter in objective.module.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (not name.startswith("target.")), name
    # A step in shares: the loss of a batch is the mean of the losses of its parts.
    views = config.masking.masks_per_crop
    halves = [
        objective.loss(logmel[part], masked[views * part.start : views * part.stop])
        for part in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close(torch.stack(halves).mean(), loss)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_counted_exactly(configure, kind):
    config = configure(*KINDS[kind], "masking.masks_per_crop=2")
    objective = build_objective(config)
    with FlopCounterMode(display=False) as counter:
        objective.loss(*batch(objective, config)).backward()
    assert counter.get_total_flops() == objective.step_flops(8)


def test_the_target_sees_the_hidden_patches_alone(configure):
    config = configure(M2D)
    objective = shaken(build_objective(config))
    logmel, masked = batch(objective, config)
    seen = []
    encoder = objective.module["target"].encoder
    encoder.patch_embed.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    objective.loss(logmel, masked)
    patches = objective.network.encoder.patches_of(logmel)
    assert torch.equal(seen[0], patches[masked].view(8, -1, patches.shape[2]))


def test_the_target_follows_by_the_decay_of_its_step(configure):
    settings = M2DConfig(first_decay=0.5, last_decay=0.9, decay_steps=4)
    assert [decay_at(step, settings) for step in (0, 1, 4, 100)] == pytest.approx([0.5, 0.6, 0.9, 0.9])
    assert decay_at(0, replace(settings, decay_steps=0)) == 0.9
    objective = build_objective(configure(M2D, *DIFFERENT))
    kernel, theirs = objective.module["target"].encoder.norm.weight, objective.network.encoder.norm.weight
    theirs.data += 1
    objective.after_step()
    torch.testing.assert_close(kernel, theirs - 0.5)
    objective.after_step()
    torch.testing.assert_close(kernel, theirs - 0.5 * 0.6)


@pytest.mark.parametrize("hardware", [(), ("hardware.threads=2", "hardware.shares=2", "hardware.micro_batch=4")])
@pytest.mark.parametrize("kind", ["mixture", "codes"])
def test_a_run_resumes_exactly(store, configure, tmp_path, kind, hardware):
    config = [*KINDS[kind], *DIFFERENT, *hardware, "optimizer.name=muon"]
    pretrain(store, tmp_path / "whole", configure(*config))
    for _ in range(6):
        pretrain(store, tmp_path / "parts", configure(*config, "run.max_minutes=1e-9"))
    whole, parts = (torch.load(tmp_path / run / "snapshot.pt", weights_only=True) for run in ("whole", "parts"))
    assert whole["model"].keys() == parts["model"].keys()
    assert all(torch.equal(tensor, parts["model"][name]) for name, tensor in whole["model"].items())
    if kind == "mixture":
        assert whole["model"]["target._extra_state"] == 6


@pytest.mark.parametrize("kind", KINDS)
def test_what_remains_embeds_and_says_whether_it_reconstructs(store, configure, tmp_path, capfd, sound, kind):
    config = configure(*KINDS[kind], "run.picture_interval_steps=3", "hardware.precision=bf16")
    pretrain(store, tmp_path, config, [ReconstructionPictures(store, config)], write_run_page)
    assert all(np.isfinite(row["loss"]) and row["peak_share"] > 0 for row in read_metrics(tmp_path) if "loss" in row)
    model = load(tmp_path, device="cpu")
    assert model.embed(sound(1.0, 0), sample_rate_hz=16000).scene.shape == (5 * 32,)
    page = Page((tmp_path / "index.html").read_text(encoding="utf-8")).text
    name = config.objective.kind
    line = f"bjective {name} keeps no decoder that reconstructs, so there are no pictures"
    pictures = list((tmp_path / "pictures").glob("*.png"))
    logmel, masked = np.zeros((1, 80, 64), np.float32), np.eye(1, 20, dtype=bool)
    if kind == "mixture":
        assert len(pictures) == 2 and line not in page
        assert model.reconstruct(logmel, masked=masked).prediction.shape == (1, 20, 256)
    else:
        assert capfd.readouterr().err.count(line) == page.count(line) == 1 and not pictures
        with pytest.raises(ConfigError, match="encoder-only"):
            model.reconstruct(logmel, masked=masked)


@pytest.mark.parametrize("kind", ["m2d", "codes"])
def test_bench_tells_the_encoder_from_the_decoder(configure, kind):
    step = TrainingStep(configure(*KINDS[kind]))
    assert list(step.timed()) == ["data", "encoder", "decoder and loss", "backward", "optimizer"]


def test_it_starts_from_a_model_of_another_objective(run_folder, store, configure, tmp_path):
    config = configure(*KINDS["m2d"])
    weights, text = initial_weights(run_folder, config, store.front_end)
    assert "its encoder and its decoder" in text
    parts = build_objective(config, weights).module.state_dict()
    given = load(run_folder, device="cpu").model.state_dict()
    for name in ("norm.weight", "blocks.1.mlp.fc1.weight"):
        assert torch.equal(parts[f"network.encoder.{name}"], given[f"encoder.{name}"])
        assert torch.equal(parts[f"target.encoder.{name}"], given[f"encoder.{name}"])
    assert torch.equal(parts["decoder.embed.weight"], given["decoder.embed.weight"])
    pretrain(store, tmp_path, config, initial_weights=weights)
    _, text = initial_weights(tmp_path, configure(), store.front_end)
    assert "its encoder and a new decoder" in text


@pytest.mark.parametrize(
    "settings",
    [
        (M2D, "model.decoder_width=0", "model.decoder_depth=0"),
        (CODES, "masking.ratio=1e-17"),
        (M2D, "m2d.feature_weight=0"),
        (M2D, "m2d.first_decay=0.9999"),
        (M2D, "m2d.reconstruction_weight=nan"),
        (CODES, "random_projection.codes=1"),
    ],
)
def test_settings_that_cannot_work_are_refused(configure, settings):
    with pytest.raises(ConfigError, match=r"; (give|set) "):
        build_objective(configure(*settings))
