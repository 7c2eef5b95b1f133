"""What a MAGE is made of: sizes, masking, and how it restores."""

import dataclasses
import math

from l2l_jax.models.mage.networks import EMBEDDING_STD


@dataclasses.dataclass(frozen=True)
class MAGESettings:
    """Settings of `l2l_jax.models.mage.model.MAGE`, and what follows from them.

    The vocabulary is the codebook, 1,000 classes that are not used, and the mask token last; the
    class token borrows the id `codebook_size + 76` of one of the classes, as in the release.

    Attributes:
      image_size: side of the images in pixels, a multiple of `patch_size`.
      width, depth, num_heads: encoder.
      decoder_width, decoder_depth, decoder_num_heads: decoder.
      embedding_std: of fresh word and position embeddings; greater ones learn faster from nothing.
      codebook_size, codebook_width, base_channels, channel_multipliers, num_res_blocks, groups:
        tokenizer, see `VQGAN`.
      dropped: share of the tokens that the encoder does not get to see, rounded up to whole tokens.
      mask_mean, mask_std: of the share of masked tokens, dropped ones included: a normal
        distribution truncated to [`dropped`, 1], drawn once per batch.
      dropout: of the token embeddings, in what `corrupt` returns. Student and teacher share its
        draw; in the release the teacher has none.
      label_smoothing: of the cross-entropy.
      hole_color: per channel, put into the mask before the image is tokenised.
      paint_masked: in training, paint the pixels of masked tokens in `hole_color` before the tokens
        that stay visible are computed, as restoration does with the mask. Not so in the release.
      hidden_margin: tokens by which the mask is grown for decoding.
      blend_margin, blend_sigma: pixels by which the mask is grown and then blurred for blending;
        14 and 7 of the release go with 256 pixels; 0 and 0 replace the mask and nothing else.
      decoding_steps: of the iterative decoding.
      choice_temperature: of the noise on how certain a token is; 0 fixes the most certain ones first.
      sampling_temperature: of the softmax that codes are drawn from; 0 takes the likeliest code.
      value_range: least and greatest pixel value.
      dtype: "float32" or "bfloat16", of the products; see `l2l_jax.models.layers.precision`.
      tokenizer_dtype: the same of the tokenizer, whose rounding may turn one code into another.
      remat: compute the inside of every block again in the backward pass, instead of keeping it.
      scan: loop over one compiled transformer block: compiles many times faster; see `vit.Stack`.
    """

    image_size: int = 256
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    decoder_width: int = 768
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    embedding_std: float = EMBEDDING_STD
    codebook_size: int = 1024
    codebook_width: int = 256
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    groups: int = 32
    dropped: float = 0.5
    mask_mean: float = 0.55
    mask_std: float = 0.25
    dropout: float = 0.1
    label_smoothing: float = 0.1
    hole_color: tuple[float, ...] = (0.485, 0.456, 0.406)
    paint_masked: bool = False
    hidden_margin: int = 1
    blend_margin: int = 14
    blend_sigma: float = 7.0
    decoding_steps: int = 20
    choice_temperature: float = 6.0
    sampling_temperature: float = 1.0
    value_range: tuple[float, float] = (0.0, 1.0)
    channels: int = 3
    dtype: str = "float32"
    tokenizer_dtype: str = "float32"
    remat: bool = False
    scan: bool = False

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of the {self.patch_size} pixels "
                f"of a token that {len(self.channel_multipliers)} channel_multipliers mean"
            )
        for width, heads, what in (
            (self.width, self.num_heads, "heads of the encoder"),
            (self.decoder_width, self.decoder_num_heads, "heads of the decoder"),
            *((self.base_channels * m, self.groups, "groups") for m in self.channel_multipliers),
        ):
            if width % heads:
                raise ValueError(f"{width} channels do not divide into {heads} {what}")
        limits = dict(dropped=1, dropout=1, label_smoothing=1)
        limits |= dict(choice_temperature=math.inf, sampling_temperature=math.inf)
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) < limit:
                raise ValueError(f"{name} must lie in [0, {limit}), not {getattr(self, name)}")
        if len(self.hole_color) != self.channels:
            raise ValueError(f"hole_color {self.hole_color} must have {self.channels} channels")
        for name in ("dtype", "tokenizer_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                raise ValueError(f"{name} must be float32 or bfloat16, not {getattr(self, name)!r}")

    @property
    def patch_size(self) -> int:
        """Side in pixels of the square that a token stands for."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens of an image, row-major."""
        return self.grid**2

    @property
    def vocabulary(self) -> int:
        """Codes, classes and the mask token."""
        return self.codebook_size + 1001

    @property
    def class_id(self) -> int:
        """The id of the class token."""
        return self.codebook_size + 76

    @property
    def mask_id(self) -> int:
        """The id of a masked token."""
        return self.vocabulary - 1
