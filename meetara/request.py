"""Requests as a person writes them, made into what other processes understand: absolute places, checked fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from protocol import LabError, TrainRequest

ModelT = TypeVar("ModelT", bound=BaseModel)


def train_request(
    dataset: str | Path, eval_dataset: str | Path | None = None, base: str | Path | None = None, **fields: Any
) -> TrainRequest:
    """Return a request whose places mean the same in another process.

    Raises:
        LabError: INVALID_PARAMS, naming the field.
    """
    places = {
        "dataset": data_uri(dataset), "eval_dataset": None if eval_dataset is None else data_uri(eval_dataset),
        "base": None if base is None else base_name(base),
    }  # fmt: skip
    return checked(TrainRequest, {**places, **fields})


def checked(model: type[ModelT], fields: dict[str, Any]) -> ModelT:
    """Return a request made of these fields.

    Raises:
        LabError: INVALID_PARAMS, naming the field.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise LabError.from_validation(error, "the request is wrong") from error


def data_uri(place: str | Path) -> str:
    """Return a data set's place as a URI that means the same in another process: paths become absolute file URIs.

    `owner/name` without a file's ending, which is no path here, is the name of a data set on a hub and stays as it is.
    """
    text = str(place)
    if "://" in text or not text or re.match(r"[A-Za-z]:[\\/]|\\\\", text):
        return text  # a Windows path is the factory's to refuse: made absolute here it would only be longer
    if isinstance(place, str) and re.fullmatch(r"\w[\w.-]*/\w[\w-]*", text) and not Path(text).exists():
        return text
    return Path(text.removeprefix("file:")).expanduser().absolute().as_uri()


def base_name(base: str | Path) -> str:
    """Return a base model's folder as an absolute path, or the name of one on a hub as it is."""
    text = str(base)
    if isinstance(base, Path) or text.startswith(("/", "./", "../", "~")) or Path(text).is_dir():
        return str(Path(text).expanduser().absolute())
    return text
