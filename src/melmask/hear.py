"""The HEAR 2021 API under the name that the HEAR validator is given: `hear-validator melmask.hear`."""

from melmask.adapters.hear import (
    HearModel,
    get_scene_embeddings,
    get_timestamp_embeddings,
    load_model,
)

__all__ = ["HearModel", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]
