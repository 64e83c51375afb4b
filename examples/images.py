"""Pictures of digits: scikit-learn's 1,797 of 8×8 pixels, or MNIST's idx files where they already lie on disk."""

from __future__ import annotations

import gzip
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Number types of an idx file by its third byte, all of them big-endian."""


@dataclass(frozen=True)
class Images:
    """Labelled pictures.

    Attributes:
        pixels: grey values from 0 to 1, [n, 1, size, size].
        labels: classes 0 … C−1, [n].
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> Images:
        """Some of the pictures, by position or mask."""
        return Images(self.pixels[rows], self.labels[rows])

    @property
    def size(self) -> int:
        """Pixels along one side."""
        return self.pixels.shape[-1]

    def of_classes(self, first: int, last: int) -> Images:
        """The pictures of the classes ``first`` … ``last``, relabelled from zero."""
        chosen = self[(self.labels >= first) & (self.labels <= last)]
        return Images(chosen.pixels, chosen.labels - first)

    def loader(self, batch_size: int = 64, seed: int | None = None) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches (pixels, labels), in a new random order each time when a seed is given, else in order."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        data = TensorDataset(self.pixels, self.labels)
        shuffled = seed is not None
        return DataLoader(data, batch_size=batch_size, shuffle=shuffled, generator=generator)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Split:
    """Disjoint parts of a set of pictures."""

    train: Images
    test: Images


def load_images(mnist: Path | None = None, limit: int | None = None) -> Images:
    """scikit-learn's digits, or MNIST when its folder is given.

    Args:
        mnist: folder with ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, plain or with ``.gz``.
        limit: pictures at most, the first ones.

    Raises:
        FileNotFoundError: the folder lacks a file.
        ValueError: a file is no idx file, or pictures and labels differ in number.
    """
    if mnist is None:
        digits = load_digits()
        pixels, labels, brightest = digits.images, digits.target, 16.0
    else:
        pixels = read_idx(find_idx(mnist, "train-images-idx3-ubyte"))
        labels, brightest = read_idx(find_idx(mnist, "train-labels-idx1-ubyte")), 255.0
    if len(pixels) != len(labels):
        raise ValueError(f"{len(pixels)} pictures but {len(labels)} labels; take both files from one source")
    grey = torch.as_tensor(pixels[:limit] / brightest, dtype=torch.float32)
    return Images(grey.unsqueeze(1), torch.as_tensor(labels[:limit].astype(np.int64)))


def find_idx(folder: Path, name: str) -> Path:
    """The file, plain or gzipped.

    Raises:
        FileNotFoundError: neither is there.
    """
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{folder} holds neither {name} nor {name}.gz; --mnist names the folder of the idx files")


def read_idx(path: Path) -> NDArray[np.generic]:
    """An array in the idx format: two zero bytes, type, number of dimensions, their sizes, then the numbers.

    Args:
        path: plain, or gzipped when it ends in ``.gz``.

    Raises:
        ValueError: the header is none or cut off, or the data are shorter or longer than it says.
    """
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise ValueError(f"{path} starts with {content[:4].hex(' ')}, which is no idx header; take MNIST's own files")
    dims, dtype = content[3], np.dtype(IDX_TYPES[content[2]])
    start = 4 + 4 * dims
    if len(content) < start:
        raise ValueError(f"{path} is cut off within its header; fetch it again")
    shape = struct.unpack(f">{dims}I", content[4:start])
    wanted = math.prod(shape) * dtype.itemsize
    if len(content) - start != wanted:
        raise ValueError(f"{path} holds {len(content) - start} bytes of data, but its header asks for {wanted}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def split_per_class(images: Images, test_per_class: int, seed: int) -> Split:
    """Draw the same number of test pictures from every class; the rest, in random order, is for training.

    Raises:
        ValueError: a class has too few pictures to leave one for training.
    """
    smallest = int(images.labels.bincount().min())
    if test_per_class >= smallest:
        raise ValueError(f"test_per_class is {test_per_class}, but the smallest class has {smallest} pictures")
    order, rank = ranked_within_class(images.labels, seed)
    return Split(train=images[order[rank >= test_per_class]], test=images[order[rank < test_per_class]])


def first_per_class(images: Images, count: int) -> Images:
    """The first ``count`` pictures of every class, all of a class that has fewer."""
    one_hot = torch.nn.functional.one_hot(images.labels)
    rank = (one_hot.cumsum(0) * one_hot).sum(1) - 1
    return images[rank < count]


def ranked_within_class(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A random order, [n], and each sample's rank among those of its class in that order, [n]."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    one_hot = torch.nn.functional.one_hot(labels[order])
    return order, (one_hot.cumsum(0) * one_hot).sum(1) - 1
