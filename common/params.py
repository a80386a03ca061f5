"""A model's parameters as named arrays and as one flat float32 vector, in the order in which the model declares
them.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from common.errors import StudyError

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
Float = TypeVar("Float", np.float32, np.float64)


def shapes(model: nn.Module, *, trainable: bool) -> Shapes:
    """Names and shapes of all parameters, or of those alone that are trained and so may leave a site."""
    return tuple(
        (name, tuple(parameter.shape))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or not trainable
    )


def length(of: Shapes) -> int:
    """Values in all tensors of these shapes together (a 0-d tensor has one)."""
    return sum(int(np.prod(shape, dtype=np.int64)) for _, shape in of)


def flatten(tensors: Iterable[Tensor]) -> NDArray[np.float32]:
    """One float32 vector of all tensors, each in row-major order. Copies."""
    parts = [tensor.detach().to("cpu", torch.float32).numpy().ravel() for tensor in tensors]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def vector_of(model: nn.Module, *, trainable: bool) -> NDArray[np.float32]:
    """The parameters as one flat vector, as `shapes` orders them."""
    return flatten(p for p in model.parameters() if p.requires_grad or not trainable)


def split(vector: NDArray[Float], of: Shapes) -> dict[str, NDArray[Float]]:
    """Named views into the vector. Raises ValueError when its length is another than the shapes' together."""
    if vector.shape != (length(of),):
        raise ValueError(f"a vector of {vector.shape} for {length(of)} values")
    named, start = {}, 0
    for name, shape in of:
        size = int(np.prod(shape, dtype=np.int64))
        named[name] = vector[start : start + size].reshape(shape)
        start += size
    return named


def assign(model: nn.Module, vector: NDArray[np.float32]) -> None:
    """All parameters of the model set from a full vector. Raises ValueError when the length is wrong, and changes
    nothing then.
    """
    named = split(vector, shapes(model, trainable=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(named[name].copy()))


def to_bytes(model_shapes: Shapes, vector: NDArray[np.float32], *, metadata: Mapping[str, str]) -> bytes:
    """A .safetensors file of the full vector under the parameters' names."""
    named = {name: torch.from_numpy(array.copy()) for name, array in split(vector, model_shapes).items()}
    return save_safetensors(named, metadata=dict(metadata))


def pinned(data: bytes, *, sha256: str, where: str) -> dict[str, Tensor]:
    """Tensors of the one .safetensors file that a study names by its hash. Raises StudyError for any other."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise StudyError(f"{where}: SHA-256 is {found}; the study's model.pretrained_sha256 is {sha256 or 'empty'}")
    return from_bytes(data, where=where)


def from_bytes(data: bytes, *, where: str) -> dict[str, Tensor]:
    """Tensors of a .safetensors file. Raises StudyError when it is not one; nothing in such a file is ever executed."""
    try:
        return load_safetensors(data)
    except SafetensorError as error:
        raise StudyError(f"{where}: not a whole .safetensors file ({error})") from error
