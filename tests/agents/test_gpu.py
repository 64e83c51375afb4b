from __future__ import annotations

import numpy as np
import pytest
import torch

from agents import DQK, DoubleDQN, KernelDDQN, KernelPPO, KernelQ, KernelSAC, KernelTD3
from agents.kernel_qrdqn import KernelQRDQN

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("cls", [DoubleDQN, DQK, KernelDDQN, KernelQ, KernelQRDQN])
def test_learns_saves_and_loads_on_the_device(cls, tmp_path) -> None:
    kernel = {"capacity": 40} if cls is DQK else {"capacity": 200, "refresh_interval": 60}
    settings = {} if cls is DoubleDQN else {"kernel": kernel}
    model = cls(
        "MlpPolicy", "CartPole-v1", device="cuda", seed=0, learning_starts=50, target_update_interval=20, **settings
    ).learn(300)
    assert model.policy.device.type == "cuda"
    model.save(tmp_path / "model.zip")
    loaded = cls.load(tmp_path / "model.zip", device="cpu")
    observations = torch.randn(10, 4)
    with torch.no_grad():
        networks = [getattr(each.policy, "quantile_net", None) or each.policy.q_net for each in (model, loaded)]
        on_device = networks[0](observations.to("cuda")).cpu()
        on_cpu = networks[1](observations)
    assert torch.allclose(on_device, on_cpu, atol=1e-4)


@pytest.mark.filterwarnings("ignore:You are trying to run KernelPPO on the GPU:UserWarning")
@pytest.mark.parametrize("cls", [KernelPPO, KernelSAC, KernelTD3])
def test_continuous_actions_learn_save_and_load_on_the_device(cls, tmp_path) -> None:
    settings = {"n_steps": 64} if cls is KernelPPO else {"learning_starts": 50}
    model = cls("MlpPolicy", "Pendulum-v1", device="cuda", seed=0, kernel={"capacity": 200}, **settings).learn(200)
    kernel = model.critic if cls is KernelPPO else model.action_kernel
    assert kernel.head.memory.features.is_cuda
    assert kernel.scalars["residual_abs_mean"] > 0.0
    model.save(tmp_path / "model.zip")
    loaded = cls.load(tmp_path / "model.zip", device="cpu")
    observation = np.zeros(3, np.float32)
    on_device, on_cpu = (each.predict(observation, deterministic=True)[0] for each in (model, loaded))
    assert np.allclose(on_device, on_cpu, atol=1e-4)
