"""Codes computed once: what a frozen tokenizer makes of images and noise, before unlearning starts.

A tokenizer that is not trained gives the same codes for the same pixels. Computed before the first step and
kept in the workdir, they take its place: of the noise alone (`config.unlearn.noise_bank`), or of the images,
too (`config.unlearn.token_bank`), after which training reads no pixels and holds no tokenizer. With as many
views as the run has epochs, and as many noise images as it shows, the run is that without a bank, number for
number.
"""

from l2l_jax.train.token_bank.batches import BankBatches, banked_task
from l2l_jax.train.token_bank.filling import open_bank
from l2l_jax.train.token_bank.storage import CODES

__all__ = ["CODES", "BankBatches", "banked_task", "open_bank"]
