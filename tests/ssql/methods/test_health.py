import pytest
import torch
from lightning import Trainer
from torch import nn

from encoders import VisionEncoder
from ssql.data import Digits
from ssql.methods import CollapseError, NonFiniteLossError, SimSiam
from ssql.methods.health import PATIENCE, Health
from ssql.terminal.interruption import Interruption
from ssql.training.checkpoints import HealthyCheckpoint


def test_a_collapse_is_named_after_some_steps_and_forgotten_when_it_passes():
    health = Health()
    for _ in range(3):
        for _ in range(PATIENCE - 1):
            health.check(7, -0.5, {"feature_std": 0.001})
        assert health.suspicious_steps == PATIENCE - 1
        health.check(7, -0.5, {"feature_std": 0.5})
        assert health.suspicious_steps == 0
    for step in range(PATIENCE - 1):
        health.check(step, -0.5, {"feature_std": 0.0})
    with pytest.raises(CollapseError, match="embeddings have collapsed: feature_std is 0 at step 99"):
        health.check(99, -0.5, {"feature_std": 0.0})


def test_a_loss_that_is_not_finite_stops_at_once():
    with pytest.raises(NonFiniteLossError, match="loss is inf at step 3 .loss_fp 1.5, feature_std 0.9."):
        Health().check(3, float("inf"), {"loss_fp": 1.5, "feature_std": 0.9})


class ConstantFrom(nn.Module):
    """Random views for some calls, then always the same image: embeddings have nothing left to differ in."""

    def __init__(self, calls):
        super().__init__()
        self.left = calls

    def forward(self, inputs, lengths, encoder):
        self.left -= 1
        return (inputs if self.left >= 0 else torch.zeros_like(inputs)), None


@pytest.mark.filterwarnings("ignore:.*(num_workers|GPU|treespec|logging interval).*")
def test_a_collapsed_run_stops_and_keeps_its_last_good_checkpoint(tmp_path):
    torch.manual_seed(0)
    encoder = VisionEncoder("resnet10t", 1, model_arguments={"stem_width": 8, "channels": [8, 16, 24, 32]})
    model = SimSiam(encoder, ConstantFrom(2 * 7), ssql=False, dim=16)
    checkpoint = HealthyCheckpoint(tmp_path, 2, Interruption())
    trainer = Trainer(
        max_steps=80,
        accelerator="cpu",
        logger=False,
        callbacks=[checkpoint],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with pytest.raises(CollapseError):
        trainer.fit(model, Digits(batch_size=32))
    assert trainer.global_step == 7 + PATIENCE - 1
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 6
    assert all(value.isfinite().all() for name, value in kept["state_dict"].items() if "activation_" not in name)
