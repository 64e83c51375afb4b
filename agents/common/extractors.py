"""Which features extractor a policy takes unless the user gives another."""

from __future__ import annotations

from typing import Any, ClassVar

from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN


class ReadsPictures(BasePolicy):
    """Mixed in before a policy: ``NatureCNN``, which ends in a hidden layer of its own."""

    reads_images: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", NatureCNN)
        super().__init__(*args, **kwargs)


class ReadsDicts(BasePolicy):
    """Mixed in before a policy: ``CombinedExtractor``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", CombinedExtractor)
        super().__init__(*args, **kwargs)
