"""Published scores for comparison, in %, with their sources; each is the primary metric of a task.

Keys are the HEAR kit's names of tasks. If a task comes in several modes, the key has the mode, as "nsynth_pitch-5h".
A published score is for the whole official task. It does not apply to another task of the same name, and a task folder
cannot prove that it is the official one.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """A model's published scores, and what to know about them."""

    name: str
    source: str
    """Sentences for the page: what the model is, and where its scores are published."""
    protocol: str
    """The protocol of the scores: "hear", as in the HEAR kit, or "linear"."""
    scores: Mapping[str, float]
    """Scores in % by task."""
    caveats: Mapping[str, str] = {}
    """By task: why the score is no target."""

    def score(self, task: str, title: str, metric: str) -> float | None:
        """Return the score on a task in %, or None if none was published or it is for another metric.

        Args:
            task: The task_name of the metadata, as "esc50".
            title: The name of the task folder, as "nsynth_pitch-v2.2.3-5h". Its last part is the mode.
            metric: The metric of the score that is compared.
        """
        if metric != _PRIMARY.get(task, "top1_acc"):
            return None
        return self.scores.get(f"{task}-{title.rpartition('-')[2]}", self.scores.get(task))

    def caveat(self, task: str) -> str | None:
        """Return why the score on a task is no target, or None if it is one."""
        return self.caveats.get(task)


_PRIMARY = {
    "beehive_states_fold0": "aucroc",
    "beehive_states_fold1": "aucroc",
    "dcase2016_task2": "event_onset_200ms_fms",
    "fsd50k": "mAP",
    "maestro": "event_onset_50ms_fms",
    "nsynth_pitch": "pitch_acc",
    "vocal_imitation": "mAP",
}

_BEEHIVE = "one score was published for both folds of the task"

HEAR_BEST = Published(
    name="best HEAR entry",
    source="For each task, this is the best of the 29 entries, so it is no single model. HEAR: Holistic Evaluation of "
    "Audio Representations, Turian et al., PMLR 176, 2022, arXiv 2203.03022",
    protocol="hear",
    scores={
        "beehive_states_fold0": 87.8,
        "beehive_states_fold1": 87.8,
        "beijing_opera": 97.5,
        "tfds_crema_d": 75.2,
        "dcase2016_task2": 92.5,
        "esc50": 94.7,
        "fsd50k": 64.1,
        "tfds_gtzan": 88.3,
        "tfds_gtzan_music_speech": 99.2,
        "gunshot_triangulation": 96.7,
        "libricount": 78.5,
        "maestro-5h": 46.9,
        "mridangam_stroke": 97.5,
        "mridangam_tonic": 94.2,
        "nsynth_pitch-5h": 87.8,
        "nsynth_pitch-50h": 90.0,
        "speech_commands-5h": 97.6,
        "speech_commands-full": 97.8,
        "vocal_imitation": 21.5,
        "vox_lingua_top10": 72.0,
    },
    caveats={"beehive_states_fold0": _BEEHIVE, "beehive_states_fold1": _BEEHIVE},
)

MSM_MAE = Published(
    name="MSM-MAE",
    source="A ViT-B was trained on AudioSet. Masked Spectrogram Modeling using Masked Autoencoders, Niizumi et al., "
    "PMLR 166, 2022, arXiv 2204.12260. Its input was normalized by the statistics of each evaluated batch, so an "
    "embedding depended on the other clips in the batch",
    protocol="hear",
    scores={"tfds_crema_d": 73.4, "libricount": 85.8, "esc50": 85.6},
    caveats={"libricount": "the statistics of the batch caused this score, so it is no target"},
)

MW_MAE_B = Published(
    name="MW-MAE-B",
    source="This is a similar model of the same size, with fixed statistics. Masked Autoencoders with Multi-Window "
    "Local-Global Attention Are Better Audio Learners, Yadav et al., ICLR 2024, arXiv 2306.00561",
    protocol="hear",
    scores={
        "beijing_opera": 96.0,
        "tfds_crema_d": 73.1,
        "esc50": 81.2,
        "libricount": 68.8,
        "mridangam_stroke": 97.4,
        "mridangam_tonic": 97.9,
        "nsynth_pitch-5h": 69.3,
        "speech_commands-5h": 90.9,
        "fsd50k": 51.2,
        "vox_lingua_top10": 44.2,
    },
)

_OWN_SPLIT = "the split is EVAR's, not HEAR's"

# EVAR's speech commands and NSynth have other classes than HEAR's tasks, so their keys begin with "evar".
EVAR_MSM_MAE = Published(
    name="MSM-MAE, linear",
    source="The model was re-trained, and EVAR's linear evaluation scored it with three seeds. Masked Modeling Duo: "
    "Towards a Universal Audio Pre-training Framework, Niizumi et al., TASLP 32, 2024, arXiv 2404.06095",
    protocol="linear",
    scores={
        "esc50": 89.2,
        "urbansound8k": 87.4,
        "evar_speech_commands": 96.0,
        "voxceleb1": 73.6,
        "voxforge": 97.8,
        "tfds_crema_d": 71.2,
        "tfds_gtzan": 79.2,
        "evar_nsynth": 74.6,
        "surge": 43.3,
    },
    caveats={"tfds_crema_d": _OWN_SPLIT, "tfds_gtzan": _OWN_SPLIT},
)

PUBLISHED = (HEAR_BEST, MSM_MAE, MW_MAE_B, EVAR_MSM_MAE)
