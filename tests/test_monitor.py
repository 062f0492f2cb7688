import copy
import csv
import math
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from melmask.downstream import monitor
from melmask.downstream.linear_and_knn import knn_probe
from melmask.downstream.monitor import FeatureRank, NearestNeighbors, _even_units, rankme
from melmask.embedding import whitening
from melmask.embedding.choice import FeatureChoice
from melmask.embedding.encoder import AudioEncoder
from melmask.errors import InputError
from melmask.figures.training import ReconstructionPictures
from melmask.geometry import step_durations_frames
from melmask.models.network import build_network
from melmask.train.pretrain import StepState, build_card, pretrain
from melmask.train.snapshot import checkpoints_of

RATE_HZ = 16000
UNIT_FRAMES = 64
KINDS = ("tone", "noise")
PER_SPLIT = {"train": 12, "valid": 8, "test": 4}


def short_sound(kind, seed):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(int(rng.uniform(0.2, 0.9) * RATE_HZ))
    tone = np.sin(2 * np.pi * rng.uniform(300, 500) * np.arange(len(noise)) / RATE_HZ)
    return 0.3 * tone + 1e-3 * noise if kind == "tone" else 0.1 * noise


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """Tones and noises, which any network tells apart; rows (path, label, split), test files do not exist."""
    folder = tmp_path_factory.mktemp("labeled")
    rows = []
    for split, count in PER_SPLIT.items():
        for number in range(count):
            kind = KINDS[number % 2]
            path = folder / f"{split}{number}.wav"
            if split != "test":
                soundfile.write(path, short_sound(kind, len(rows)), RATE_HZ)
            rows.append({"path": path, "label": kind, "split": split})
    return rows


@pytest.fixture
def write_table(tmp_path):
    """Writes rows (dicts) to a CSV file."""

    def written(rows):
        path = tmp_path / "labels.csv"
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
        return path

    return written


@pytest.fixture
def state(store, configure, tmp_path):
    config = configure()
    return StepState(1, build_network(config.model, 0), build_card(store, config), tmp_path)


@pytest.fixture
def probed(monkeypatch):
    """What the k-NN probe was given and gave, a list entry a call."""
    calls = []

    def noted(features, labels, splits):
        score = knn_probe(features, labels, splits)
        calls.append(SimpleNamespace(features=features, labels=labels, splits=splits, score=score))
        return score

    monkeypatch.setattr(monitor, "knn_probe", noted)
    return calls


@pytest.fixture
def encoded(monkeypatch):
    """(precision, frames of each piece) of every call of the encoder."""
    calls = []
    embed_segments = AudioEncoder.embed_segments

    def noted(self, segments, *choice):
        calls.append((self.precision, [segment.shape[1] for segment in segments]))
        return embed_segments(self, segments, *choice)

    monkeypatch.setattr(AudioEncoder, "embed_segments", noted)
    return calls


def encoder_of(state):
    return AudioEncoder(copy.deepcopy(state.model), state.card, device="cpu")


def without(rows, *columns):
    return [{key: value for key, value in row.items() if key not in columns} for row in rows]


def test_the_rank_of_known_matrices():
    assert rankme(np.eye(7)) == pytest.approx(7, rel=1e-5)
    assert rankme(5 * np.eye(30, 7)) == pytest.approx(7, rel=1e-5)
    assert rankme(np.outer(np.arange(1.0, 41.0), np.arange(20.0))) == pytest.approx(1, abs=1e-4)
    # Shares 3/4 and 1/4: (4/3)^(3/4) * 4^(1/4).
    assert rankme(np.diag([3.0, 1.0])) == pytest.approx((4 / 3) ** 0.75 * 4**0.25, rel=1e-5)
    assert rankme(np.zeros((5, 3), dtype=np.float32)) == 0


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_the_rank_is_the_exponential_of_the_entropy_of_the_singular_values(shape):
    vectors = np.random.default_rng(0).standard_normal(shape) * np.linspace(0.1, 3, shape[1])
    gram = vectors @ vectors.T if shape[0] < shape[1] else vectors.T @ vectors
    singular = [math.sqrt(value) for value in np.linalg.eigvalsh(gram)]
    entropy = 0.0
    for value in singular:
        share = value / sum(singular) + 1e-7
        entropy -= share * math.log(share)
    assert rankme(vectors) == pytest.approx(math.exp(entropy), rel=1e-9)
    assert 6 < rankme(vectors) < 12


def test_a_mean_that_all_rows_share_lowers_the_rank():
    vectors = np.random.default_rng(0).standard_normal((100, 10))
    assert rankme(vectors) > 9
    assert rankme(vectors + 1000) < 1.1


def test_the_feature_rank_is_that_of_units_all_over_the_sound(store, configure, state):
    encoder = encoder_of(state)
    result = FeatureRank(store, configure())(state)
    places = _even_units(store.frames, UNIT_FRAMES, 512)
    assert {clip for clip, _ in places} == set(range(len(store)))
    crops = [np.empty((min(UNIT_FRAMES, store.frames[clip]), 80), dtype="<f2") for clip, _ in places]
    for crop, place in zip(crops, places, strict=True):
        store.read_into(crop, *place)
    logmels = [torch.from_numpy(crop).T.float() for crop in crops]
    vectors = []
    for logmel, steps in zip(logmels, encoder.embed_segments(logmels, FeatureChoice(pooling="mean")), strict=True):
        weights = step_durations_frames(logmel.shape[1], 16)
        vectors.append(weights @ steps / weights.sum())
    assert result["rank_units"] == len(places)
    assert result["feature_rank"] == pytest.approx(rankme(np.array(vectors)), rel=1e-3)


def test_units_lie_evenly_and_inside_their_clips():
    assert _even_units(np.array([100]), 40, 5) == [(0, 10), (0, 30), (0, 50), (0, 60)], "the last two are the same"
    assert _even_units(np.array([10, 300, 10]), 40, 4) == [(1, 30), (1, 110), (1, 190), (1, 260)]
    assert _even_units(np.array([20, 20, 20]), 40, 3) == [(0, 0), (1, 0), (2, 0)]


def test_separable_classes_score_one(store, configure, state, labeled, write_table):
    hook = NearestNeighbors(write_table(labeled), store, configure())
    assert hook(state) == {"knn_accuracy": 1.0}
    assert (hook.clips, hook.errors) == (20, {})


def test_several_labels_a_clip_are_scored_by_mean_average_precision(store, configure, state, labeled, write_table):
    together = [row | {"label": f"{row['label']};all {row['label']}"} for row in labeled]
    assert NearestNeighbors(write_table(together), store, configure())(state) == {"knn_map": 1.0}
    # A label without rhyme or reason costs as much as one of two labels can.
    mixed = [row | {"label": row["label"] + ";odd" * (i // 2 % 2)} for i, row in enumerate(labeled)]
    assert 0.6 < NearestNeighbors(write_table(mixed), store, configure())(state)["knn_map"] < 0.95
    unlabeled = [row | {"label": "" if row["split"] == "valid" else f"{row['label']};x"} for row in labeled]
    with pytest.raises(InputError, match="no clip of a held-out part has a label"):
        NearestNeighbors(write_table(unlabeled), store, configure())


def test_shuffled_labels_score_near_chance(store, configure, state, tmp_path, write_table):
    rng = np.random.default_rng(5)
    rows = []
    for number in range(120):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(1600), RATE_HZ)
        rows.append({"path": path, "label": str(rng.integers(2))})
    score = NearestNeighbors(write_table(rows), store, configure())(state)["knn_accuracy"]
    assert abs(score - 0.5) < 4 * math.sqrt(0.25 / 120)


@pytest.mark.parametrize("together", [1, 60_000])
def test_vectors_are_those_of_the_encoder_and_train_rows_vote_on_valid_rows(
    store, configure, state, labeled, write_table, probed, monkeypatch, together
):
    monkeypatch.setattr(whitening, "FRAMES_TOGETHER", together)
    rng = np.random.default_rng(0)
    # Labels without rhyme or reason, so that the score is one that only the right rows give; folds play no part.
    rows = [row | {"label": str(rng.integers(2)), "fold": str(i % 3)} for i, row in enumerate(labeled)]
    result = NearestNeighbors(write_table(rows), store, configure())(state)
    used = [row for row in rows if row["split"] != "test"]
    scenes = np.stack([encoder_of(state).embed(row["path"]).scene for row in used])
    (call,) = probed
    np.testing.assert_allclose(call.features, scenes, atol=3e-3)
    assert np.abs(scenes - scenes.mean(0)).max() > 0.3
    assert [str(label) for label in call.labels] == [row["label"] for row in used]
    (split,) = call.splits
    assert [used[i]["split"] for i in split.train] == ["train"] * 12
    assert [used[i]["split"] for i in split.test] == ["valid"] * 8
    assert result == {"knn_accuracy": call.score.mean}


def test_files_of_test_rows_are_not_even_opened(store, configure, labeled, write_table, monkeypatch):
    opened = []
    read = monitor.read_audio_blocks
    noted = lambda sound, *how: opened.append(sound.path) or read(sound, *how)  # noqa: E731
    monkeypatch.setattr(monitor, "read_audio_blocks", noted)
    hook = NearestNeighbors(write_table(labeled), store, configure())
    assert opened == [row["path"] for row in labeled if row["split"] != "test"]
    assert hook.errors == {}


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ({"split": lambda i: "test" if i >= 20 else "train"}, "random"),
        ({"split": lambda i: "test" if i >= 20 else "train", "group": lambda i: str(i // 2)}, "group"),
        ({"split": lambda i: "test" if i >= 20 else "valid", "fold": lambda i: str(i % 4)}, "fold"),
    ],
)
def test_rows_without_a_valid_part_are_held_out_in_turn(
    store, configure, state, labeled, write_table, probed, columns, names
):
    rows = [row | {name: of(i) for name, of in columns.items()} for i, row in enumerate(labeled)]
    hook = NearestNeighbors(write_table(rows), store, configure())
    assert hook.clips == 20
    assert hook(state)["knn_accuracy"] > 0.9
    (call,) = probed
    assert {split.name.split()[0] for split in call.splits} == {names}
    assert sorted(np.concatenate([split.test for split in call.splits])) == list(range(20))


def test_a_sample_keeps_the_valid_part(store, configure, state, labeled, write_table, probed):
    path = write_table(labeled)
    for limit, train, valid in ((8, 4, 4), (18, 10, 8), (20, 12, 8)):
        hook = NearestNeighbors(path, store, configure(), limit=limit)
        hook(state)
        (split,) = probed[-1].splits
        assert (hook.clips, len(split.train), len(split.test)) == (limit, train, valid)


def test_unreadable_files_are_left_out_and_counted(store, configure, state, labeled, write_table, sound_folder, probed):
    broken = {"path": sound_folder / "broken.wav", "label": "tone", "split": "train"}
    hook = NearestNeighbors(write_table([broken, *labeled]), store, configure())
    ((sound, reason),) = hook.errors.items()
    assert sound.path == sound_folder / "broken.wav" and "cannot be read as sound" in reason
    assert hook.clips == 20
    assert hook(state) == {"knn_accuracy": 1.0}
    assert probed[0].splits[0].train.tolist() == list(range(12))


def test_tables_that_nothing_can_be_held_out_of_are_refused_before_files_are_read(
    store, configure, labeled, write_table, monkeypatch
):
    def refuse(path, rate_hz):
        pytest.fail("a file was opened")

    monkeypatch.setattr(monitor, "read_audio_blocks", refuse)
    only_test = [row | {"split": "test"} for row in labeled]
    one_class = [row | {"label": f"{row['label']} {row['split'] == 'test'}"} for row in labeled[1::2]]
    one_fold = [row | {"fold": "a"} for row in without(labeled, "split")]
    for rows, message in (
        (only_test, r"labels.csv has only test rows"),
        (one_class, r"labels.csv has 10 usable rows .*: split trains on 1 class"),
        (one_fold, r"labels.csv has 24 usable rows .*: all rows are in fold 'a'; mark"),
        (without(labeled[:4], "split"), r"labels.csv has 4 usable rows .* mark rows train and valid"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            NearestNeighbors(write_table(rows), store, configure())
        assert "\n" not in str(caught.value)


def test_a_table_without_readable_files_is_refused(store, configure, labeled, write_table, tmp_path):
    rows = [row | {"path": tmp_path / "gone" / row["path"].name} for row in labeled]
    with pytest.raises(InputError, match=r"none of 20 files of .*labels.csv could be read, as .* does not exist"):
        NearestNeighbors(write_table(rows), store, configure())


@pytest.mark.parametrize("block_samples", [3000, 1 << 20])
def test_only_the_beginning_of_a_long_file_counts(
    store, configure, state, labeled, write_table, encoded, monkeypatch, block_samples
):
    monkeypatch.setattr(monitor, "LONGEST_S", 0.4)
    monkeypatch.setattr("melmask.audio.files._BLOCK_FRAMES", block_samples)
    read, blocks = monitor.read_audio_blocks, []

    def counted(path, *how):
        for number, block in enumerate(read(path, *how), start=1):
            blocks.append(number)
            yield block

    monkeypatch.setattr(monitor, "read_audio_blocks", counted)
    NearestNeighbors(write_table(labeled), store, configure())(state)
    ((_, frames),) = encoded
    used = [1 + soundfile.info(row["path"]).frames // 160 for row in labeled if row["split"] != "test"]
    assert frames == [min(41, known) for known in used]
    assert 41 in frames and min(frames) < 41
    # 41 frames need 6,600 samples; of 14,000 no more are read.
    assert max(blocks) == (3 if block_samples == 3000 else 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_computes_in_the_precision_of_the_run(store, configure, state, encoded, precision):
    FeatureRank(store, configure(f"hardware.precision={precision}"))(state)
    assert [name for name, _ in encoded] == [precision]


def test_bfloat16_changes_the_rank_little(store, configure, state):
    exact, quick = (FeatureRank(store, configure(f"hardware.precision={p}"))(state) for p in ("fp32", "bf16"))
    assert quick["feature_rank"] == pytest.approx(exact["feature_rank"], rel=0.01)


def test_a_broken_model_gets_no_numbers(store, configure, state, labeled, write_table):
    hooks = [FeatureRank(store, configure()), NearestNeighbors(write_table(labeled), store, configure())]
    with torch.no_grad():
        next(state.model.encoder.parameters()).fill_(math.nan)
    assert [hook(state) for hook in hooks] == [{}, {}]


def test_the_model_and_the_random_states_are_left_as_they_were(store, configure, state, labeled, write_table):
    weights = copy.deepcopy(state.model.state_dict())
    state.model.train()
    trained = [(p.requires_grad, id(p)) for p in state.model.parameters()]
    assert any(requires for requires, _ in trained)
    randomness = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    threads, product_precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    hooks = FeatureRank(store, configure()), NearestNeighbors(write_table(labeled), store, configure())
    assert all(hook(state) for hook in hooks)
    assert torch.equal(torch.random.get_rng_state(), randomness[0])
    assert np.array_equal(np.random.get_state()[1], randomness[1])
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads, product_precision)
    assert [(p.requires_grad, id(p)) for p in state.model.parameters()] == trained
    assert all(module.training for module in state.model.modules())
    assert all(torch.equal(weights[name], tensor) for name, tensor in state.model.state_dict().items())


def test_a_run_with_hooks_is_the_run_without(store, configure, labeled, write_table, tmp_path):
    config = configure("optimizer.steps=4", "run.picture_interval_steps=1")
    hooks = [FeatureRank(store, config), NearestNeighbors(write_table(labeled), store, config)]
    seen = []
    pretrain(store, tmp_path / "plain", config)
    pretrain(store, tmp_path / "watched", config, [*hooks, lambda state: seen.append(state.step) or {}])
    assert seen == [1, 2, 3, 4]
    plain, watched = (
        (checkpoints_of(tmp_path / run)[-1] / "model.safetensors").read_bytes() for run in ("plain", "watched")
    )
    assert plain == watched


def test_pictures_give_no_numbers(store, configure, state):
    assert ReconstructionPictures(store, configure())(state) == {}
    assert (state.run / "pictures" / "step-0000001.png").exists()
