"""Every method through Lightning: a few steps on speech and images, accumulation, clipping, bf16, exact resuming."""

import pytest
import torch
from lightning import Callback, Trainer

from encoders import SpeechTransformer, VisionEncoder
from ssql.augment import ImageAugmentation, SpeechAugmentation
from ssql.data import DataModule, Digits
from ssql.data.batch import LabelledTensors
from ssql.methods import BYOL, MaskedPrediction, MoCo, SimCLR, SimSiam, SSQLOptions
from ssql.methods.method import seeded

pytestmark = pytest.mark.filterwarnings("ignore:.*(num_workers|GPU|treespec|logging interval|resuming).*")

METHODS = [SimSiam, BYOL, MoCo, SimCLR]
SIZES = {"dim": 16}


class Clips(DataModule):
    modality = "audio"

    def load(self):
        generator = torch.Generator().manual_seed(0)
        clips = [torch.randn(3000 + 100 * index, generator=generator) for index in range(32)]
        return {"train": LabelledTensors(clips, {"class": [0] * 32})}


class Record(Callback):
    def __init__(self):
        self.losses, self.bits = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.losses.append(outputs["loss"].item())
        self.bits.append(float(trainer.callback_metrics.get("weight_bits", 0)))


def speech(method, **arguments):
    torch.manual_seed(0)
    sizes = {} if method is MaskedPrediction else SIZES
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9)  # noqa: E731
    encoder = SpeechTransformer(width=16, depth=2, heads=2)
    return method(encoder, SpeechAugmentation(), **({"optimizer": optimizer} | sizes | arguments))


def images(method, **arguments):
    torch.manual_seed(0)
    encoder = VisionEncoder("resnet10t", 1, model_arguments={"stem_width": 8, "channels": [8, 16, 24, 32]})
    return method(encoder, ImageAugmentation(8, colour=False, flip=False), **(SIZES | arguments))


def fit(model, data, steps=3, ckpt_path=None, **arguments):
    record = Record()
    trainer = Trainer(
        **({"max_steps": steps} | arguments),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[record],
    )
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    return record, trainer


@pytest.mark.parametrize("ssql", [True, False])
@pytest.mark.parametrize(
    ("build", "method"),
    [*((speech, method) for method in (*METHODS, MaskedPrediction)), *((images, method) for method in METHODS)],
    ids=lambda value: value.__name__,
)
def test_every_method_trains(build, method, ssql):
    model, data = build(method, ssql=ssql), Clips(batch_size=8) if build is speech else Digits(batch_size=32)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    record, _ = fit(model, data)
    assert all(torch.isfinite(torch.tensor(record.losses)))
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert {"encoder", "teacher" if hasattr(model, "teacher") else "projector"} <= {
        name.split(".")[0] for name in moved
    }


@pytest.mark.parametrize("sequential", [True, False])
def test_accumulated_steps_share_a_draw_and_add_up_to_the_mean_of_their_gradients(sequential):
    options = SSQLOptions(sequential=sequential)
    model = speech(BYOL, ssql=options, seed=2)
    record, trainer = fit(model, Clips(batch_size=8), steps=2, accumulate_grad_batches=2, gradient_clip_val=0.05)
    assert record.bits[0] == record.bits[1] != record.bits[2] == record.bits[3]
    assert trainer.global_step == 2

    twin = speech(BYOL, ssql=options, seed=2)
    twin.log = twin.log_dict = lambda *_, **__: None
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    data = Clips(batch_size=8)
    batches = iter(data.train_dataloader())
    for step in range(2):
        optimizer.zero_grad()
        for half in range(2):
            batch = next(batches)
            with seeded(hash((2, 2 * step + half, 0)) % 2**63, twin.device):
                views = twin.random_views(batch)
            bits = record.bits[2 * step]
            twin._bit_widths = lambda ssql, step=step: type(model)._bit_widths(
                type("At", (), {"global_step": step, "current_epoch": 0, "seed": 2})(), ssql
            )
            loss, _, logs = twin._ssql_step(views, twin.ssql)
            assert logs["weight_bits"] == bits
            (loss / 2).backward()
        torch.nn.utils.clip_grad_norm_([p for p in twin.parameters() if p.requires_grad], 0.05)
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1.0 if step == 0 else 0.5)
        optimizer.step()
        twin.after_update()
    for (name, parameter), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(parameter, expected, atol=1e-5), name


@pytest.mark.parametrize("method", [BYOL, MoCo, SimCLR, MaskedPrediction])
def test_bf16_runs(method):
    record, _ = fit(speech(method), Clips(batch_size=8), precision="bf16-mixed")
    assert all(torch.isfinite(torch.tensor(record.losses)))


@pytest.mark.parametrize("method", [BYOL, MoCo, MaskedPrediction])
@pytest.mark.parametrize("length", [{"steps": 6}, {"steps": -1, "max_epochs": 2}], ids=["steps", "epochs"])
def test_a_resumed_run_ends_with_the_same_weights_teacher_and_queue(method, length, tmp_path):
    arguments = {"momentum": [0.9, 1.0]} | ({"queue_size": 16} if method is MoCo else {})
    whole = speech(method, **arguments)
    _, trainer = fit(whole, Clips(batch_size=8), **length)

    class Stop(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    half = speech(method, **arguments)
    half.configure_callbacks = lambda: [Stop()]
    fit(half, Clips(batch_size=8), **length)
    resumed = speech(method, **arguments)
    fit(resumed, Clips(batch_size=8), **length, ckpt_path=tmp_path / "half.ckpt")
    state = resumed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())
