"""The data of a run, and whether other data fits its network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sidestep.data import Data, load_data
from sidestep.data.preparation import Size
from sidestep.data.split import Role, class_difference, shown_name
from sidestep.errors import DataError
from sidestep.runs.run_folder import OpenedRun
from sidestep.training.checkpoint import Checkpoint

# In front of the digest of the images, which runs of before it was noted do not have.
_CONTENT = ", content "


def data_of(opened: OpenedRun, split: Role, source: str | None) -> Data:
    """Return a split of the run's data, or of other data that fits the run's network.

    Pictures are prepared as in the run, whatever the sizes of others would say.

    Raises:
        DataError: for data with other classes, or the same in another order, or images of another size.
    """
    config = opened.data_from(source)
    data = load_data(config, preparation=opened.preparation, splits=[split])
    check_fits(opened, config.source, data.class_names, data.input_size)
    if source is None:
        _check_drawn_from(opened.values, data, config.source)
    return data


def check_fits(opened: OpenedRun, source: str, class_names: Sequence[str], size: Size) -> None:
    """Return if images of a source have a run's classes and size.

    Raises:
        DataError: naming what differs.
    """
    _check_classes(opened.class_names, class_names, f"source {source!r}")
    if tuple(size) != opened.input_size:
        raise DataError(
            f"images of source {source!r} must be {list(opened.input_size)} as in training, got "
            f"{list(size)}; set data.image_size when training"
        )


def _check_classes(trained: Sequence[str], found: Sequence[str], where: str) -> None:
    """Refuse classes that are not a run's, by name and order: outputs would be taken for others."""
    difference = class_difference(found, [shown_name(name) for name in trained])
    if difference is not None:
        raise DataError(
            f"{where} must have the run's {len(trained)} classes, by name and order, got {len(found)}: "
            f"{difference}; rename its folders, or the names of its label column, as in training"
        )


def _check_drawn_from(values: Mapping[str, Any], data: Data, source: str) -> None:
    """Refuse a training split that has changed: other images would be held out, that were trained on."""
    then, now = values.get("drawn_from"), data.drawn_from
    if then is None or now is None:
        return
    if _CONTENT not in then:
        now = now.partition(_CONTENT)[0]
    if now != then:
        raise DataError(
            f"the training split of source {source!r} must be as when the run began, {then}, got {now}; "
            "restore it, or train anew: what is held out now may have been trained on"
        )


def check_same_data(checkpoint: Checkpoint, data: Data, source: str) -> None:
    """Refuse to go on with a run on data that has changed since it began.

    Raises:
        DataError: naming what differs.
    """
    values = checkpoint.values
    _check_classes(values["class_names"], data.class_names, f"source {source!r}")
    known = values.get("preparation") or {"size": values["input_size"]}
    changed = [key for key, value in known.items() if data.preparation.as_dict()[key] != value]
    if changed:
        raise DataError(
            f"images of source {source!r} must be as when the run began, with {changed[0]} "
            f"{known[changed[0]]}, got {data.preparation.as_dict()[changed[0]]}; restore them, or start anew"
        )
    _check_drawn_from(values, data, source)
