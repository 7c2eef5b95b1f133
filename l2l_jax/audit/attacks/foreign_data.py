"""Fine-tuning on unrelated images, by an attacker who does not know or does not have the forget images."""

import dataclasses

from l2l_jax.audit.attacks.base import Count, register
from l2l_jax.audit.attacks.training import TrainingAttack
from l2l_jax.data.arrays import NoiseImages
from l2l_jax.data.config import SourceConfig
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import general_set
from l2l_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Foreign(SourceConfig):
    where = "config.audit.foreign_data"


@register("foreign_data")
@dataclasses.dataclass(frozen=True)
class ForeignData(TrainingAttack):
    """Fine-tuning of the whole model on images that are neither retained nor forgotten.

    Attributes:
      images: "noise" for generated images with the spectra of photographs; "general" for the training images
        of `config.data.general`; otherwise a source as in `config.data.source`.
      path: Folder or file of the source.
      count: Number of generated images.
    """

    title = "foreign images ({images}), {steps} steps"
    source = "arXiv 2512.03564"

    steps: Count = 200
    images: str = "noise"
    path: str = ""
    count: Count = 2000

    def check(self, bench):
        self.training_images("", bench, 0)

    def training_images(self, variant, bench, seed):
        size, data = bench.model.image_size, bench.config.data
        if self.images == "noise":
            return NoiseImages(self.count, size, bench.seed(seed))
        if self.images == "general":
            general = general_set(data, open_source(data, "train", size))
            if general is None:
                raise UserError(
                    "config.audit.foreign_data.images is 'general', but config.data.general is empty."
                )
            return general
        return open_source(_Foreign(self.images, self.path), "train", size)
