from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

import quant
from encoders import VisionEncoder, load_encoder, save_encoder
from ssql.training.batch_norm import SyncBatchNorms, check_synchronized, frozen_statistics, layer_sync


def test_frozen_statistics_neither_move_nor_count_and_go_on_afterwards():
    norm, inputs = nn.BatchNorm1d(4), torch.randn(8, 4) + 3
    with frozen_statistics(norm):
        frozen = norm(inputs)
    assert torch.equal(norm.running_mean, torch.zeros(4))
    assert norm.num_batches_tracked == 0
    assert norm.momentum == 0.1
    assert torch.equal(norm(inputs), frozen)
    assert torch.allclose(norm.running_mean, 0.1 * inputs.mean(dim=0))
    assert norm.num_batches_tracked == 1


def network():
    """Batch norms of torch and, with an activation inside, of timm."""
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), BatchNormAct2d(3), nn.Flatten(), nn.BatchNorm1d(48, affine=False))


def test_synchronized_norms_of_one_process_are_what_they_were_and_go_back():
    images = torch.randn(8, 3, 4, 4)
    alone, synchronized = network(), network()
    parameters, forms = list(synchronized.parameters()), [type(part) for part in synchronized]
    SyncBatchNorms().apply(synchronized)
    assert [isinstance(part, nn.SyncBatchNorm) for part in synchronized] == [True, True, False, True]
    assert torch.equal(synchronized(images), alone(images))
    with frozen_statistics(synchronized):
        synchronized(images + 1)
    state = synchronized.state_dict()
    assert all(torch.equal(state[name], value) for name, value in alone.state_dict().items())
    assert torch.equal(synchronized.eval()(images), alone.eval()(images))
    SyncBatchNorms().revert(synchronized)
    assert [type(part) for part in synchronized] == forms
    assert all(a is b for a, b in zip(parameters, synchronized.parameters(), strict=True))
    assert torch.equal(synchronized(images), alone(images))
    assert vars(synchronized[0]).keys() == vars(alone[0]).keys()


def test_an_encoder_saved_with_synchronized_norms_is_the_one_without(tmp_path):
    torch.manual_seed(0)
    encoder = quant.prepare(VisionEncoder("mobilenetv2_035", 1))
    images = torch.rand(4, 1, 32, 32)
    quant.calibrate(encoder, [images])
    SyncBatchNorms().apply(encoder)
    encoder(images)
    save_encoder(encoder.eval(), tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder")
    assert not any(isinstance(part, nn.SyncBatchNorm) for part in loaded.modules())
    with quant.at(encoder, "w8a8"), quant.at(loaded, "w8a8"):
        assert torch.equal(loaded(images), encoder(images))


def trainer(sync, device="cuda", world_size=2):
    strategy = SimpleNamespace(_layer_sync=sync, root_device=torch.device(device))
    return SimpleNamespace(strategy=strategy, world_size=world_size)


def test_what_cannot_be_synchronized_is_an_error():
    check_synchronized(trainer(SyncBatchNorms()), network())
    check_synchronized(trainer(None, "cpu"), network())
    check_synchronized(trainer(SyncBatchNorms(), "cpu", world_size=1), network())
    check_synchronized(trainer(TorchSyncBatchNorm()), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="sync_batchnorm needs GPUs"):
        check_synchronized(trainer(SyncBatchNorms(), "cpu"), network())
    with pytest.raises(ValueError, match="loses the activations inside timm's BatchNormAct2d"):
        check_synchronized(trainer(TorchSyncBatchNorm()), network())


@pytest.mark.filterwarnings("ignore")
def test_lightning_takes_the_plugin_for_the_switch():
    real = Trainer(
        sync_batchnorm=True, plugins=[SyncBatchNorms()], strategy="ddp", accelerator="cpu", devices=2, logger=False,
        enable_checkpointing=False,
    )  # fmt: skip
    assert isinstance(layer_sync(real), SyncBatchNorms)
    with pytest.raises(ValueError, match="sync_batchnorm needs GPUs"):
        check_synchronized(real, network())
