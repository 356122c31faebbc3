"""Which files of a hub repository an entry needs: safetensors, JSON and tokenizers, each weight once, nothing else.

Pure: it is given the list of files and a way to read the JSON among them. Pickles, scripts and second copies of the
weights (fp16 variants, other frameworks, single files beside a diffusers folder) are never in the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import PurePosixPath
from typing import Any

from models._folder import PICKLES, WEIGHTS
from polyreel.errors import CheckpointUnavailable

#: What is read beside weights: configurations, vocabularies, merges, sentencepiece models.
_SMALL = (".json", ".txt", ".model")

#: Parses one JSON file of the repository. Any: JSON.
ReadJson = Callable[[str], Any]


def needed_files(repository: str, inside: str, files: Collection[str], read_json: ReadJson) -> list[str]:
    """Return the paths that an entry needs, sorted.

    Args:
        repository: for messages.
        inside: a file or folder of the repository, "" for all of it.
        files: every path in the repository.
        read_json: called for model_index.json and the indexes of sharded weights.

    Raises:
        CheckpointUnavailable: it is not there, or its weights are to be had in no form that is loaded.
    """
    if inside in files:
        if not inside.endswith(".safetensors"):
            raise CheckpointUnavailable(
                f"{repository}: {inside} is not a .safetensors file; others may run code when they are read."
            )
        return [inside]
    folder = f"{inside}/" if inside else ""
    if f"{folder}model_index.json" in files:
        return sorted(_pipeline(repository, folder, files, read_json))
    if f"{folder}config.json" in files:
        return sorted(_component(repository, folder, files, read_json))
    weights = sorted(path for path in files if path.endswith(".safetensors"))
    hint = f" Its safetensors files: {', '.join(weights[:10])}; name one as {repository}/FILE." if weights else ""
    raise CheckpointUnavailable(
        f"{repository} has no {inside}.{hint}"
        if inside
        else f"{repository} is not a checkpoint folder: it has neither model_index.json nor config.json.{hint}"
    )


def _pipeline(repository: str, folder: str, files: Collection[str], read_json: ReadJson) -> set[str]:
    """Return the files of a diffusers folder: its index, and the components that the index names."""
    index = read_json(f"{folder}model_index.json")
    found = {f"{folder}model_index.json"}
    for name, value in index.items() if isinstance(index, dict) else ():
        # Components are [library, class]; [null, null] is one that this checkpoint goes without.
        if isinstance(value, list) and value and value[0] is not None:
            found |= _component(repository, f"{folder}{name}/", files, read_json)
    return found


def _component(repository: str, folder: str, files: Collection[str], read_json: ReadJson) -> set[str]:
    """Return the files of one model, tokenizer or scheduler."""
    here = {path for path in files if path.startswith(folder) and "/" not in path.removeprefix(folder)}
    if not here:
        raise CheckpointUnavailable(f"{repository} is incomplete on the hub: it has no folder {folder}")
    found = {path for path in here if path.endswith(_SMALL) and not re.search(r"\.index(\.\w+)?\.json$", path)}
    weights = _weights(repository, folder, here, read_json)
    if not weights:
        others = sorted(here - found)
        variants = [path for path in others if path.endswith(".safetensors")]
        pickles = [path for path in others if PurePosixPath(path).suffix in PICKLES]
        if variants:
            raise CheckpointUnavailable(
                f"{repository} has weights of {folder} only as {', '.join(variants[:3])}, which are not loaded; "
                "choose a repository that has them without a variant."
            )
        if pickles:
            raise CheckpointUnavailable(
                f"{repository} has weights of {folder} only as {', '.join(pickles[:3])}: a pickle may run code when it "
                "is read, and only safetensors are loaded. Choose another repository, or convert them."
            )
    return found | weights


def _weights(repository: str, folder: str, here: Collection[str], read_json: ReadJson) -> set[str]:
    for name in WEIGHTS:
        path = f"{folder}{name}"
        if path not in here:
            continue
        if path.endswith(".safetensors"):
            return {path}
        try:
            shards = {f"{folder}{shard}" for shard in read_json(path)["weight_map"].values()}
        except (KeyError, TypeError, AttributeError) as err:
            raise CheckpointUnavailable(f"{repository}: {path} is not an index of weights on the hub.") from err
        lost = sorted(shards - set(here))
        if lost:
            raise CheckpointUnavailable(f"{repository} is incomplete on the hub: {path} names {lost[0]}")
        return {path, *shards}
    return set()
