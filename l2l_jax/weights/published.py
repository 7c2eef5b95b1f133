"""Files of weights that others have published, and the folder where the program looks for them.

Sizes and checksums were taken from public records of people who downloaded the files; where none was found
nothing stands here.
"""

import dataclasses
import os
import pathlib

from l2l_jax.errors import UserError
from l2l_jax.utils.runtime import home

FOLDER_VARIABLE = "L2L_JAX_WEIGHTS"
"""Environment variable that names the folder of weights."""


def weights_folder() -> pathlib.Path:
    """Where weights of feature networks are looked for: $L2L_JAX_WEIGHTS, or ~/.cache/l2l_jax/weights."""
    named = os.environ.get(FOLDER_VARIABLE)
    return pathlib.Path(named).expanduser() if named else home() / ".cache/l2l_jax/weights"


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A file of weights.

    Attributes:
      name: what it is called on the command line.
      holds: what is in it.
      file: its name in the folder of weights.
      url: where it can be downloaded; empty where that takes a browser.
      page: where it is published.
      licence: of the weights.
      size: in bytes, if known.
      sha256: in hexadecimal digits, if known.
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
        """Its size, as far as it is known."""
        return "size not known" if self.size is None else f"{self.size / 1e6:,.1f} MB"


def _mae(variant: str, folder: str, name: str) -> PublishedFile:
    file = f"mae_{variant}.pth"
    return PublishedFile(
        name=name,
        holds=f"MAE, {'plain' if folder == 'visualize' else 'normalised'} pixels",
        file=file,
        url=f"https://dl.fbaipublicfiles.com/mae/{folder}/{file}",
        page="https://github.com/facebookresearch/mae",
        licence="CC BY-NC 4.0: no commercial use",
    )


def _mage(name: str, holds: str, file: str, drive_id: str) -> PublishedFile:
    return PublishedFile(
        name=name,
        holds=holds,
        file=file,
        url=f"https://drive.usercontent.google.com/download?id={drive_id}&export=download&confirm=t",
        page="https://github.com/LTH14/mage",
        licence="MIT",
    )


_FILES = (
    PublishedFile(
        name="inception",
        holds="Inception-v3 of the FID",
        file="pt_inception-2015-12-05-6726825d.pth",
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
        page="https://github.com/mseitzer/pytorch-fid",
        licence="Apache-2.0 (TensorFlow's inception-2015-12-05, ported by pytorch-fid)",
        size=95_628_359,
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    PublishedFile(
        name="resnet50-places365",
        holds="ResNet-50 of Places-365",
        file="resnet50_places365.pth.tar",
        url="http://places2.csail.mit.edu/models_places365/resnet50_places365.pth.tar",
        page="https://github.com/CSAILVision/places365",
        licence="CC BY",
        sha256="46529c86902bd0cfb0ea562a30b2850c28d2620d96282b3db9c318e1d774f6c5",
    ),
    PublishedFile(
        name="clip-vit-h-14",
        holds="CLIP ViT-H/14 trained on LAION-2B",
        file="clip_vit_h_14_laion2b.bin",
        url="https://huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K/resolve/"
        "1c2b8495b28150b8a4922ee1c8edee224c284c0c/open_clip_pytorch_model.bin",
        page="https://huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        licence="MIT",
        size=3_944_692_325,
        sha256="9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4",
    ),
    PublishedFile(
        name="clip-vit-b-32",
        holds="CLIP ViT-B/32 of OpenAI",
        file="clip_vit_b_32_openai.bin",
        url="https://huggingface.co/openai/clip-vit-base-patch32/resolve/"
        "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268/pytorch_model.bin",
        page="https://huggingface.co/openai/clip-vit-base-patch32",
        licence="MIT",
        size=605_247_071,
        sha256="a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
    ),
    _mae("visualize_vit_base", "visualize", "mae-vit-b"),
    _mae("visualize_vit_large", "visualize", "mae-vit-l"),
    _mae("visualize_vit_huge", "visualize", "mae-vit-h"),
    _mae("visualize_vit_large_ganloss", "visualize", "mae-vit-l-gan"),
    _mage("mage-vit-b", "MAGE ViT-B", "mage-vitb-1600.pth", "1Q6tbt3vF0bSrv5sPrjpFu8ksG3vTsVX2"),
    _mage("mage-vit-l", "MAGE ViT-L", "mage-vitl-1600.pth", "15xBPa8EIa0IRUiRYtXiYOC9JZVyMIFrB"),
    _mage("mage-vqgan", "MAGE's VQGAN", "vqgan_jax_strongaug.ckpt", "13S_unB87n6KKuuMdyMnyExW0G1kplTbP"),
    PublishedFile(
        name="palette-places2",
        holds="Palette, inpainting of Places2",
        file="palette_places2_Network.pth",
        url="",
        page="https://github.com/Janspiry/Palette-Image-to-Image-Diffusion-Models#pretrained-model",
        licence="MIT",
    ),
)

PUBLISHED = {file.name: file for file in _FILES}
"""The files by name."""


def published(name: str) -> PublishedFile:
    """The file of that name.

    Raises:
      UserError: there is none.
    """
    if name not in PUBLISHED:
        raise UserError(f"There is no published file {name!r} in the list: {', '.join(PUBLISHED)}.")
    return PUBLISHED[name]
