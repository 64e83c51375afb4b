"""Two small networks for pictures of digits, a convolutional one and a vision transformer, and how they are trained.

Both give features of ``WIDTH`` numbers to ``fc``, the last layer, which may be replaced.
"""

from __future__ import annotations

from typing import Literal

import torch
from images import Images
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 64
"""Features that reach the last layer."""


class ConvNet(nn.Module):
    """Three convolutions, of which two halve the picture, averaged over positions.

    Args:
        size: pixels along one side.
        classes: outputs of the last layer.
    """

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        if size < 4:
            raise ValueError(f"size is {size}, but two halvings need at least 4 pixels along one side")
        self.blocks = nn.Sequential(convolution(1, 32, 1), convolution(32, 64, 2), convolution(64, WIDTH, 2))
        self.fc: nn.Module = nn.Linear(WIDTH, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits, [B, classes], of grey values, [B, 1, size, size]."""
        logits: Tensor = self.fc(self.blocks(pixels).mean((-2, -1)))
        return logits


class VisionTransformer(nn.Module):
    """Patches as tokens, three blocks of attention, averaged over tokens.

    After A. Dosovitskiy et al., *An Image is Worth 16x16 Words*, 2021, arXiv 2010.11929, with the mean of the tokens in
    place of a class token.

    Args:
        size: pixels along one side, a multiple of the patch: 2 pixels up to 8, else 4.
        classes: outputs of the last layer.
    """

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        patch = 2 if size <= 8 else 4
        if size % patch:
            raise ValueError(f"size is {size}, but must be a multiple of the patch of {patch} pixels; pad the pictures")
        self.patches = nn.Conv2d(1, WIDTH, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.norm = nn.LayerNorm(WIDTH)
        self.fc: nn.Module = nn.Linear(WIDTH, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits, [B, classes], of grey values, [B, 1, size, size]."""
        tokens = self.patches(pixels).flatten(2).mT + self.positions
        logits: Tensor = self.fc(self.norm(self.blocks(tokens)).mean(1))
        return logits


class Block(nn.Module):
    """Self-attention, then a network for each token, both added to what came in."""

    def __init__(self, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens to tokens, [B, T, WIDTH]."""
        normed = self.norm1(tokens)
        tokens = tokens + self.dropout(self.attention(normed, normed, normed, need_weights=False)[0])
        mixed: Tensor = self.dropout(self.mlp(self.norm2(tokens)))
        return tokens + mixed


def convolution(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """A 3×3 convolution, normalised and rectified: over groups of channels, so that training and evaluation agree."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, channels_out),
        nn.ReLU(),
    )


BackboneName = Literal["cnn", "vit"]

BACKBONES: dict[BackboneName, type[ConvNet] | type[VisionTransformer]] = {"cnn": ConvNet, "vit": VisionTransformer}


def make_backbone(name: BackboneName, images: Images, seed: int) -> ConvNet | VisionTransformer:
    """An untrained network for these pictures and their classes."""
    torch.manual_seed(seed)
    return BACKBONES[name](images.size, int(images.labels.max()) + 1)


def train(model: nn.Module, images: Images, epochs: int, seed: int, learning_rate: float = 3e-3) -> float:
    """Minimise the cross entropy by AdamW in one cycle of the learning rate.

    Args:
        model: logits from pixels.
        images: training pictures.
        epochs: passes over them.
        seed: of the order of the batches, and of dropout.
        learning_rate: the largest one.

    Returns:
        Mean loss of the last epoch.
    """
    torch.manual_seed(seed)
    loader = images.loader(seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * len(loader))
    model.train()
    for _ in range(epochs):
        total = 0.0
        for pixels, labels in loader:
            loss = functional.cross_entropy(model(pixels), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(labels)
    model.eval()
    return total / len(images)


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Share of pictures whose largest logit is the right one's."""
    right = [(model(pixels).argmax(-1) == labels).float() for pixels, labels in images.loader(batch_size=256)]
    return float(torch.cat(right).mean())
