from __future__ import annotations

import pytest
import torch

from agents import DoubleDQN, KernelDDQN, KernelQ

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("cls", [DoubleDQN, KernelDDQN, KernelQ])
def test_learns_saves_and_loads_on_the_device(cls, tmp_path) -> None:
    settings = {} if cls is DoubleDQN else {"kernel": {"capacity": 200, "refresh_interval": 60}}
    model = cls(
        "MlpPolicy", "CartPole-v1", device="cuda", seed=0, learning_starts=50, target_update_interval=20, **settings
    ).learn(300)
    assert model.policy.device.type == "cuda"
    model.save(tmp_path / "model.zip")
    loaded = cls.load(tmp_path / "model.zip", device="cpu")
    observations = torch.randn(10, 4)
    with torch.no_grad():
        on_device = model.policy.q_net(observations.to("cuda")).cpu()
        on_cpu = loaded.policy.q_net(observations)
    assert torch.allclose(on_device, on_cpu, atol=1e-4)
