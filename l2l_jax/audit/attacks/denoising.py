"""Alternative samplers of a diffusion model: starting from the noised image, and with scaled noise."""

import dataclasses

from l2l_jax.audit.attacks.base import Attack, Rate, Work, register


@dataclasses.dataclass(frozen=True)
class _Denoising(Attack):
    source = 'arXiv 2505.17013, "When Are Concepts Erased From Diffusion Models?"'

    def why_not(self, bench):
        return bench.model.why_no_noise

    def _measured(self, bench, target, sets, start=1.0, scale=1.0):
        def compute(params, image, rng):
            return bench.model.denoise(params, image[None], bench.mask, rng, start, scale)[0]

        over = bench.runner(("denoise", start, scale), compute).over
        return bench.measure(target.params, f"{target.name}, denoising {start:g} {scale:g}", sets, over=over)


@register("partial_denoising")
@dataclasses.dataclass(frozen=True)
class PartialDenoising(_Denoising):
    """Reverse diffusion that starts from the noised true image, a hint of decreasing strength.

    Attributes:
      starts: Percentages of the sampler's steps to run.
    """

    cost = "up to one reconstruction of the forget images for each start"

    starts: tuple[int, ...] = (75, 50)

    def __post_init__(self):
        if not all(0 < start <= 100 for start in self.starts):
            raise ValueError(f"starts must be percentages from 1 to 100, not {self.starts}")

    def variants(self, bench):
        return {f"partial_denoising_{x}": f"last {x} % of the denoising steps" for x in self.starts}

    def work(self, bench):
        return Work(bench.count("forget") * sum(self.starts) / 100)

    def run(self, variant, bench, target, seed):
        start = int(variant.removeprefix("partial_denoising_")) / 100
        return {"0": self._measured(bench, target, ("forget",), start=start)}


@register("noise_overload")
@dataclasses.dataclass(frozen=True)
class NoiseOverload(_Denoising):
    """Reverse diffusion with scaled noise after each step.

    Attributes:
      scales: Factors; 1 is the stochastic sampler between the same noise levels.
    """

    title = "scaled noise of the sampler"
    cost = "a reconstruction of the forget images for each scale"
    is_curve = True

    scales: tuple[Rate, ...] = (1.0, 1.5)

    def work(self, bench):
        return Work(bench.count("validation", "forget") * len(self.scales))

    def run(self, variant, bench, target, seed):
        sets = ("validation", "forget")
        return {f"x{scale:g}": self._measured(bench, target, sets, scale=scale) for scale in self.scales}
