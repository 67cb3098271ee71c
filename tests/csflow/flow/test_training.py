"""Training against a plain loop written by hand; kills, signals and resumes with the same bits at the end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from csflow.config import FlowConfig, TrainingConfig
from csflow.errors import CsflowError, DataError, ModelError
from csflow.flow import checkpoint as checkpoint_module
from csflow.flow.checkpoint import CHECKPOINT_FILE
from csflow.flow.cross_scale import CrossScaleFlow
from csflow.flow.distributed import ALONE, ProcessGroup
from csflow.flow.pyramid import Pyramid, latent_count
from csflow.flow.standardization import channel_statistics
from csflow.flow.training import EpochResult, fit_flow
from csflow.flow.training_run import TrainingRun
from csflow.system import seals
from tests.damage import damages, inflict, remove

CHANNELS, SCALES = 6, 2
FLOW = FlowConfig(blocks=2, hidden=8, standardize=True)
PLAIN = FlowConfig(blocks=2, hidden=8, standardize=False)
TRAINING = TrainingConfig(epochs=3, batch_size=8, learning_rate=2e-3, device="cpu", precision="float32")
EVERY_STEP = 1e-9


class Images:
    """Correlated features of 20 images, from memory, remembering what was asked for."""

    def __init__(self, count: int = 20, on_batch: Callable[[int], None] = lambda calls: None) -> None:
        generator = torch.Generator().manual_seed(3)
        base = torch.randn(count, 1, 4, 4, generator=generator)
        finest = 3.0 * base + torch.randn(count, CHANNELS, 4, 4, generator=generator) + 2.0
        self.levels = [finest, torch.nn.functional.avg_pool2d(finest, 2)]
        self.asked: list[list[int]] = []
        self.on_batch = on_batch

    def __len__(self) -> int:
        return len(self.levels[0])

    def batch(self, indices: Sequence[int]) -> Pyramid:
        self.asked.append(list(indices))
        self.on_batch(len(self.asked))
        return [level[list(indices)] for level in self.levels]


class Killed(Exception):
    """Stands in for a crash inside the process."""


def crash_at(call: int) -> Callable[[int], None]:
    def on_batch(calls: int) -> None:
        if calls == call:
            raise Killed

    return on_batch


def run(
    directory: Path,
    images: Images | None = None,
    *,
    flow: FlowConfig = PLAIN,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
    group: ProcessGroup = ALONE,
    **changes: object,
) -> CrossScaleFlow:
    return fit_flow(
        Images() if images is None else images,
        flow,
        TRAINING.model_copy(update=changes),
        channels=CHANNELS,
        scales=SCALES,
        directory=directory,
        on_epoch=on_epoch,
        group=group,
    )


def assert_same_bits(flow: CrossScaleFlow, other: CrossScaleFlow) -> None:
    state, expected = flow.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    assert [name for name in state if not torch.equal(state[name], expected[name])] == []


def test_equals_a_plain_loop(tmp_path: Path) -> None:
    images = Images()
    results: list[EpochResult] = []
    trained = run(tmp_path, images, on_epoch=results.append, max_grad_norm=0.05, eps=1e-4)

    torch.manual_seed(TRAINING.seed)
    flow = CrossScaleFlow(PLAIN, channels=CHANNELS, scales=SCALES)
    optimizer = torch.optim.Adam(
        flow.parameters(), lr=2e-3, betas=(0.5, 0.9), eps=1e-4, weight_decay=1e-5, foreach=False, fused=False
    )
    losses = []
    for indices in images.asked:
        optimizer.zero_grad()
        latents, log_det = flow([level[indices] for level in images.levels])
        flat = torch.cat([z.flatten(1) for z in latents], dim=1)
        loss = (0.5 * flat.square().sum(dim=1) - log_det).mean() / flat.shape[1]
        loss.backward()
        total = torch.stack([p.grad.square().sum() for p in flow.parameters() if p.grad is not None]).sum().sqrt()
        for parameter in flow.parameters():
            assert parameter.grad is not None
            parameter.grad *= min(1.0, 0.05 / total.item())
        optimizer.step()
        losses.append(loss.item() + 0.5 * np.log(2 * np.pi))

    expected = flow.state_dict()
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
    weights = [8, 8, 4] * 3
    for epoch, result in enumerate(results):
        part = slice(3 * epoch, 3 * epoch + 3)
        assert result.nll == pytest.approx(np.average(losses[part], weights=weights[part]), rel=1e-4)
    assert [(r.epoch, r.epochs, r.learning_rate) for r in results] == [(1, 3, 2e-3), (2, 3, 2e-3), (3, 3, 2e-3)]
    assert all(r.grad_norm > 0 and r.seconds > 0 for r in results)


def test_every_epoch_sees_every_image_once_in_another_order(tmp_path: Path) -> None:
    images = Images()
    run(tmp_path, images)
    assert [len(indices) for indices in images.asked] == [8, 8, 4] * 3
    epochs = [[i for indices in images.asked[start : start + 3] for i in indices] for start in (0, 3, 6)]
    assert all(sorted(order) == list(range(20)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3


@pytest.mark.parametrize("flow", [FLOW, PLAIN], ids=["standardised", "plain"])
def test_learns(tmp_path: Path, flow: FlowConfig) -> None:
    results: list[EpochResult] = []
    trained = run(tmp_path, flow=flow, on_epoch=results.append, epochs=15, learning_rate=1e-2)
    assert results[-1].nll < results[0].nll - 0.3
    assert not trained.training
    images = Images()
    if flow.standardize:
        mean, std = channel_statistics(images)
        torch.testing.assert_close(trained.feature_mean, mean.float())
        torch.testing.assert_close(trained.feature_std, std.float())
    else:
        assert trained.feature_mean.abs().max() == 0
    with torch.no_grad():
        nll = trained.per_dimension(trained.nll(images.levels), images.levels).mean().item()
    assert nll == pytest.approx(results[-1].nll, abs=0.3)


def test_seed_decides_everything_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = run(tmp_path / "a", epochs=1)
    assert torch.equal(torch.rand(3), expected)
    assert_same_bits(run(tmp_path / "b", epochs=1), first)
    other = run(tmp_path / "c", epochs=1, seed=1)
    name = "blocks.0.subnet_1.inner.0.weight"
    assert not torch.equal(other.state_dict()[name], first.state_dict()[name])


@pytest.mark.parametrize("flow", [FLOW, PLAIN], ids=["standardised", "plain"])
@pytest.mark.parametrize("crash", [3, 5, 7, 9])
def test_resume_gives_the_same_bits_and_epochs(tmp_path: Path, crash: int, flow: FlowConfig) -> None:
    whole: list[EpochResult] = []
    expected = run(tmp_path / "whole", flow=flow, on_epoch=whole.append)
    seen: list[EpochResult] = []
    broken = Images(on_batch=crash_at(crash + flow.standardize))
    with pytest.raises(Killed):
        run(tmp_path / "run", broken, flow=flow, on_epoch=seen.append, checkpoint_seconds=EVERY_STEP)
    assert len(seen) == (crash - 1) // 3
    images = Images()
    resumed = run(tmp_path / "run", images, flow=flow, on_epoch=seen.append)
    assert_same_bits(resumed, expected)
    assert len(images.asked) == 9 - (crash - 1), "batches were trained again, or left out"
    assert [r.again for r in seen] == [False] * ((crash - 1) // 3) + [r.epoch <= (crash - 2) // 3 for r in whole]
    whole_again = [(r.epoch, r.nll, r.grad_norm) for r in seen[(crash - 1) // 3 :]]
    assert whole_again == [(r.epoch, r.nll, r.grad_norm) for r in whole], "a resumed run reports the whole curve"


def test_averaging_is_the_mean_of_the_weights_after_each_of_the_last_steps(tmp_path: Path) -> None:
    one_batch = {"batch_size": 20}  # so that a run of k epochs ends with the weights after step k
    ended = [run(tmp_path / f"{k}", epochs=k, **one_batch).state_dict() for k in (3, 4, 5)]
    averaged = run(tmp_path / "mean", epochs=5, averaging=0.5, **one_batch).state_dict()  # 2.5 steps: three
    for name, tensor in averaged.items():
        mean = torch.stack([state[name].double() for state in ended]).mean(dim=0)
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-7)
    assert not torch.equal(averaged["blocks.0.subnet_1.inner.0.weight"], ended[-1]["blocks.0.subnet_1.inner.0.weight"])


@pytest.mark.parametrize("crash", [3, 6, 9])
@pytest.mark.slow
def test_averaging_is_resumed_with_the_same_bits(tmp_path: Path, crash: int) -> None:
    expected = run(tmp_path / "whole", averaging=0.6)
    with pytest.raises(Killed):
        run(tmp_path / "run", Images(on_batch=crash_at(crash)), averaging=0.6, checkpoint_seconds=EVERY_STEP)
    assert_same_bits(run(tmp_path / "run", averaging=0.6), expected)
    assert_same_bits(run(tmp_path / "run", averaging=0.6), expected)  # found again, finished


# Trains with a checkpoint after every step and holds before the sixth until the file "go" is there.
SCRIPT = """
import sys, time
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from test_training import EVERY_STEP, Images, run
torch.set_num_threads(int(sys.argv[3]))
directory = Path(sys.argv[1])
def hold(calls):
    if calls == 6:
        (directory / "held").touch()
        while not (directory / "go").exists():
            time.sleep(0.02)
run(directory, Images(on_batch=hold), checkpoint_seconds=EVERY_STEP)
"""


def start_process(directory: Path) -> subprocess.Popen[str]:
    here = Path(__file__)
    command = [sys.executable, "-c", SCRIPT, str(directory), str(here.parent), str(torch.get_num_threads())]
    environment = os.environ | {"PYTHONPATH": str(here.parents[3])}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_processes_are_resumed_with_the_same_bits(tmp_path: Path) -> None:
    signals = {"kill": signal.SIGKILL, "term": signal.SIGTERM}
    processes = {name: start_process(tmp_path / name) for name in signals}
    codes, errors = {}, {}
    for name, process in processes.items():
        deadline = time.monotonic() + 300
        while not (tmp_path / name / "held").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signals[name])
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "go").touch()
        _, errors[name] = process.communicate(timeout=60)
        codes[name] = process.returncode
    assert codes == {"kill": -signal.SIGKILL, "term": 143}, errors
    expected = run(tmp_path / "whole")
    for name, steps_left in {"kill": 4, "term": 3}.items():  # SIGTERM lets the sixth step end
        images = Images()
        assert_same_bits(run(tmp_path / name, images), expected)
        assert len(images.asked) == steps_left


def test_sigterm_during_the_last_on_epoch_is_not_lost(tmp_path: Path) -> None:
    def on_epoch(result: EpochResult) -> None:
        if result.epoch == result.epochs:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_info:
        run(tmp_path / "run", on_epoch=on_epoch)
    assert exit_info.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    images = Images()
    seen: list[EpochResult] = []
    resumed = run(tmp_path / "run", images, on_epoch=seen.append)
    assert not images.asked
    assert [result.epoch for result in seen] == [1, 2, 3]
    assert_same_bits(resumed, run(tmp_path / "whole"))


def test_a_finished_run_is_found_again(tmp_path: Path) -> None:
    whole: list[EpochResult] = []
    expected = run(tmp_path, on_epoch=whole.append)
    images, seen = Images(), []
    assert_same_bits(run(tmp_path, images, on_epoch=seen.append), expected)
    assert (images.asked, seen) == ([], whole), "nothing is trained again, whenever the process was killed"


def test_steps_are_read_late_but_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's way of training, on the CPU: same result, divergence still found, checkpoints still sound."""
    whole: list[EpochResult] = []
    expected = run(tmp_path / "whole", on_epoch=whole.append)
    read = TrainingRun.read_steps
    monkeypatch.setattr(TrainingRun, "reads_every_step", False)
    calls: list[int] = []
    monkeypatch.setattr(TrainingRun, "read_steps", lambda r: (calls.append(len(r.unread)), read(r)))
    seen: list[EpochResult] = []
    assert_same_bits(run(tmp_path / "late", on_epoch=seen.append), expected)
    assert [(r.nll, r.grad_norm) for r in seen] == [(r.nll, r.grad_norm) for r in whole]
    assert calls[:3] == [3, 3, 3], "three steps an epoch are read together at its end"
    with pytest.raises(ModelError, match="diverged"):
        run(tmp_path / "diverged", learning_rate=1e6, max_grad_norm=1e6)


def test_trains_outside_the_main_thread(tmp_path: Path) -> None:
    flows: list[CrossScaleFlow] = []
    thread = threading.Thread(target=lambda: flows.append(run(tmp_path, epochs=1)))
    thread.start()
    thread.join()
    assert len(flows) == 1


def interrupted(directory: Path, flow: FlowConfig = PLAIN) -> Path:
    with pytest.raises(Killed):
        run(directory, Images(on_batch=crash_at(5)), flow=flow, checkpoint_seconds=EVERY_STEP)
    return directory / CHECKPOINT_FILE


def test_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    checkpoint = interrupted(tmp_path)
    with pytest.raises(ModelError, match=r"training.epochs is 3 there, 4 here; training.seed is 0 there, 2 here"):
        run(tmp_path, epochs=4, seed=2)
    with pytest.raises(ModelError, match=r"flow.hidden is 8 there, 9 here.*another folder"):
        run(tmp_path, flow=PLAIN.model_copy(update={"hidden": 9}))
    with pytest.raises(ModelError, match=r"images is 20 there, 12 here"):
        run(tmp_path, Images(12))
    assert checkpoint.exists(), "a refused checkpoint must not be deleted"
    run(tmp_path, checkpoint_seconds=99.0)


def test_checkpoint_holds_tensors_and_json_only(tmp_path: Path) -> None:
    with safe_open(interrupted(tmp_path), framework="pt") as file:
        assert set(file.metadata()) == {"format", "identity", "progress", "seal"}
        assert {name.split(".")[0] for name in file.keys()} == {"flow", "adam"}  # noqa: SIM118 (not a mapping)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]


def test_a_checkpoint_is_written_without_a_copy_of_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, int] = {}

    def note(tensors: dict[str, torch.Tensor], *arguments: object, **keywords: object) -> None:
        written.update({name: tensor.data_ptr() for name, tensor in tensors.items()})

    monkeypatch.setattr(checkpoint_module, "save_file", note)
    flow = CrossScaleFlow(PLAIN, channels=CHANNELS, scales=SCALES).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(flow.parameters(), fused=True)
    for parameter in flow.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    (tmp_path / f"{CHECKPOINT_FILE}.part").write_text(seals.OPEN)
    checkpoint_module.save_checkpoint(
        tmp_path / CHECKPOINT_FILE, flow, optimizer, checkpoint_module.TrainingProgress(), {}, {}
    )
    for name, parameter in flow.named_parameters():
        assert written[f"flow.{name}"] == parameter.data_ptr()
        assert written[f"adam.{name}.exp_avg"] == optimizer.state[parameter]["exp_avg"].data_ptr()


def test_a_checkpoint_of_another_csflow_is_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = run(tmp_path / "whole")
    monkeypatch.setattr(checkpoint_module, "CHECKPOINT_FORMAT", "2")
    content = interrupted(tmp_path / "run").read_bytes()
    monkeypatch.undo()
    assert_same_bits(run(tmp_path / "run"), expected)
    assert "has format 2, not 3: another csflow wrote it. Put aside as" in capsys.readouterr().err
    assert (tmp_path / "run" / f"{CHECKPOINT_FILE}.damaged").read_bytes() == content


@pytest.mark.parametrize("flow", [FLOW, PLAIN], ids=["standardised", "plain"])
def test_a_damaged_checkpoint_is_put_aside_and_the_run_starts_over(
    tmp_path: Path, flow: FlowConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    whole: list[EpochResult] = []
    expected = run(tmp_path / "whole", flow=flow, on_epoch=whole.append)
    checkpoint = interrupted(tmp_path / "run", flow=flow)
    sound = checkpoint.read_bytes()
    for number, (damage, content) in enumerate(damages(sound)):
        remove(checkpoint)
        inflict(checkpoint, content)
        images = Images()
        seen: list[EpochResult] = []
        assert_same_bits(run(tmp_path / "run", images, flow=flow, on_epoch=seen.append), expected)
        assert [(r.epoch, r.nll) for r in seen] == [(r.epoch, r.nll) for r in whole], damage
        assert len(images.asked) >= 9, damage
        assert "Put aside as checkpoint.safetensors.damaged" in capsys.readouterr().err, damage
        assert len(list(checkpoint.parent.glob("*.damaged*"))) == number + 1, "all of them are kept"
    remove(checkpoint)
    checkpoint.write_bytes(sound)
    images = Images()
    assert_same_bits(run(tmp_path / "run", images, flow=flow), expected)
    assert len(images.asked) < 9, "a sound one is resumed"


def test_full_disk_is_named_and_the_old_checkpoint_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = interrupted(tmp_path)
    content = checkpoint.read_bytes()

    def fill_disk(tensors: dict[str, torch.Tensor], filename: Path, metadata: dict[str, str]) -> None:
        filename.write_bytes(b"half a ch")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_module, "save_file", fill_disk)
    with pytest.raises(CsflowError, match=r"Cannot write .*No space left.*Free disk space"):
        run(tmp_path, checkpoint_seconds=EVERY_STEP)
    assert checkpoint.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]


def test_nan_features_stop_training_before_they_reach_the_weights(tmp_path: Path) -> None:
    def poison(calls: int) -> None:
        if calls == 4:
            images.levels[0][:] = torch.nan

    images = Images(on_batch=poison)
    with pytest.raises(ModelError, match=r"diverged in epoch 2, step 1: .* nan .*learning_rate"):
        run(tmp_path, images, checkpoint_seconds=EVERY_STEP)
    with safe_open(tmp_path / CHECKPOINT_FILE, framework="pt") as file:
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118 (not a mapping)


def test_divergence_stops_training(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="diverged in epoch"):
        run(tmp_path, learning_rate=10.0, epochs=20, max_grad_norm=1e6)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images to train on"):
        run(tmp_path, Images(0))


def test_features_of_another_backbone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Expected 7 channels, got 6"):
        fit_flow(Images(), PLAIN, TRAINING, channels=7, scales=SCALES, directory=tmp_path)


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    results: dict[str, float] = {}
    for precision in ("float32", "bfloat16"):
        epochs: list[EpochResult] = []
        flow = run(tmp_path / precision, precision=precision, on_epoch=epochs.append)
        results[precision] = epochs[-1].nll
        assert {p.dtype for p in flow.parameters()} == {torch.float32}
    assert results["bfloat16"] == pytest.approx(results["float32"], abs=0.02)
    assert results["bfloat16"] != results["float32"]


@pytest.mark.gpu
def test_gpu_trains_like_the_cpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    expected = run(tmp_path / "cpu")
    trained = run(tmp_path / "gpu", device="cuda")
    images = Images()
    with torch.no_grad():
        difference = (trained.nll(images.levels) - expected.nll(images.levels)).abs() / latent_count(images.levels)
    assert difference.max() < 1e-2
    with pytest.raises(Killed):
        run(tmp_path / "again", Images(on_batch=crash_at(5)), device="cuda", checkpoint_seconds=EVERY_STEP)
    resumed = run(tmp_path / "again", device="cuda")
    with torch.no_grad():
        difference = (resumed.nll(images.levels) - trained.nll(images.levels)).abs() / latent_count(images.levels)
    assert difference.max() < 1e-2
