"""Published files of weights, and the folder where the program looks for them.

Sizes and checksums were taken from public records of people who downloaded the files; they are None where no
record was found.
"""

import dataclasses
import os
import pathlib

from l2l_jax.errors import UserError
from l2l_jax.utils.runtime import home

FOLDER_VARIABLE = "L2L_JAX_WEIGHTS"
"""Environment variable that names the folder of weights."""


def weights_folder() -> pathlib.Path:
    """Return the folder of weights: $L2L_JAX_WEIGHTS, or ~/.cache/l2l_jax/weights."""
    named = os.environ.get(FOLDER_VARIABLE)
    return pathlib.Path(named).expanduser() if named else home() / ".cache/l2l_jax/weights"


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A file of weights.

    Attributes:
      name: Its name on the command line.
      holds: Its content, in words.
      file: Its name in the folder of weights.
      url: Where it can be downloaded; empty where that takes a browser.
      page: Where it is published.
      licence: Of the weights.
      size: In bytes, if known.
      sha256: In hexadecimal digits, if known.
    """

    name: str
    holds: str
    file: str
    url: str
    page: str
    licence: str
    size: int | None = None
    sha256: str | None = None

    def size_in_words(self) -> str:
        """Return its size, as far as it is known."""
        return "size not known" if self.size is None else f"{self.size / 1e6:,.1f} MB"


def _github(owner: str) -> str:
    return f"https://github.com/{owner}"


def _mae(size: str, name: str) -> PublishedFile:
    file = f"mae_visualize_vit_{size}.pth"
    url = f"https://dl.fbaipublicfiles.com/mae/visualize/{file}"
    licence = "CC BY-NC 4.0: no commercial use"
    return PublishedFile(name, "MAE, plain pixels", file, url, _github("facebookresearch/mae"), licence)


def _mage(name: str, holds: str, file: str, drive_id: str) -> PublishedFile:
    url = f"https://drive.usercontent.google.com/download?id={drive_id}&export=download&confirm=t"
    return PublishedFile(name, holds, file, url, _github("LTH14/mage"), "MIT")


def _clip(name: str, holds: str, file: str, place: str, size: int, sha256: str) -> PublishedFile:
    repository, path = place.split(" ")
    page = f"https://huggingface.co/{repository}"
    return PublishedFile(name, holds, file, f"{page}/resolve/{path}", page, "MIT", size, sha256)


_INCEPTION = "pt_inception-2015-12-05-6726825d.pth"

_FILES = (
    PublishedFile(
        "inception",
        "Inception-v3 of the FID",
        _INCEPTION,
        _github(f"mseitzer/pytorch-fid/releases/download/fid_weights/{_INCEPTION}"),
        _github("mseitzer/pytorch-fid"),
        "Apache-2.0 (TensorFlow's inception-2015-12-05, ported by pytorch-fid)",
        95_628_359,
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    PublishedFile(
        "resnet50-places365",
        "ResNet-50 of Places-365",
        "resnet50_places365.pth.tar",
        "http://places2.csail.mit.edu/models_places365/resnet50_places365.pth.tar",
        _github("CSAILVision/places365"),
        "CC BY",
        None,
        "46529c86902bd0cfb0ea562a30b2850c28d2620d96282b3db9c318e1d774f6c5",
    ),
    _clip(
        "clip-vit-h-14",
        "CLIP ViT-H/14 trained on LAION-2B",
        "clip_vit_h_14_laion2b.bin",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K "
        "1c2b8495b28150b8a4922ee1c8edee224c284c0c/open_clip_pytorch_model.bin",
        3_944_692_325,
        "9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4",
    ),
    _clip(
        "clip-vit-b-32",
        "CLIP ViT-B/32 of OpenAI",
        "clip_vit_b_32_openai.bin",
        "openai/clip-vit-base-patch32 3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268/pytorch_model.bin",
        605_247_071,
        "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
    ),
    _mae("base", "mae-vit-b"),
    _mae("large", "mae-vit-l"),
    _mae("huge", "mae-vit-h"),
    _mae("large_ganloss", "mae-vit-l-gan"),
    _mage("mage-vit-b", "MAGE ViT-B", "mage-vitb-1600.pth", "1Q6tbt3vF0bSrv5sPrjpFu8ksG3vTsVX2"),
    _mage("mage-vit-l", "MAGE ViT-L", "mage-vitl-1600.pth", "15xBPa8EIa0IRUiRYtXiYOC9JZVyMIFrB"),
    _mage("mage-vqgan", "MAGE's VQGAN", "vqgan_jax_strongaug.ckpt", "13S_unB87n6KKuuMdyMnyExW0G1kplTbP"),
    PublishedFile(
        "palette-places2",
        "Palette, inpainting of Places2",
        "palette_places2_Network.pth",
        "",
        _github("Janspiry/Palette-Image-to-Image-Diffusion-Models#pretrained-model"),
        "MIT",
    ),
)

PUBLISHED = {file.name: file for file in _FILES}
"""The files by name."""


def published(name: str) -> PublishedFile:
    """Return the file of that name.

    Raises:
      UserError: There is none.
    """
    if name not in PUBLISHED:
        raise UserError(f"There is no published file {name!r} in the list: {', '.join(PUBLISHED)}.")
    return PUBLISHED[name]
