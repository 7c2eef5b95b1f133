"""Sampler search: a search over the randomness of reconstructions, without changing weights."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from l2l_jax.audit.attacks.base import Attack, Count, Rate, Work, register


@register("sampler_search")
@dataclasses.dataclass(frozen=True)
class SamplerSearch(Attack):
    """A search for the draw that best fits pixels or codes next to the mask, withheld from the model.

    Diffusion models are also attacked by gradient descent on their initial noise.

    Attributes:
      draws: Number of draws.
      rounds: Number of Adam steps on the initial noise.
      learning_rate: Learning rate of Adam.
    """

    title = "sampler search, {draws} draws"
    source = 'arXiv 2412.00782, "Memories of Forgotten Concepts"; arXiv 2602.00175'
    cost = "`draws` reconstructions of the forget images, and `rounds` with gradients for diffusion models"
    is_curve = True

    draws: Count = 8
    rounds: Count = 10
    learning_rate: Rate = 0.1

    def why_not(self, bench):
        return bench.model.why_no_samples

    def work(self, bench):
        images = bench.count("validation", "forget")
        return Work(images * (self.draws + (0 if bench.model.why_no_noise else 4 * self.rounds)))

    def run(self, variant, bench, target, seed):
        searches = {"draws": self._best_draw}
        if not bench.model.why_no_noise:
            searches["descent"] = self._descent
        points = {}
        for name, search in searches.items():

            def compute(params, image, rng, search=search):
                return search(bench.model, params, image[None], bench.mask, rng)

            over = bench.runner((self, name), compute).over
            points[name] = bench.measure(target.params, f"{target.name}, {variant}, {name}", over=over)
        return points

    def _best_draw(self, model, params, image, mask, rng):
        drawn, misfits = jax.lax.map(
            lambda key: model.sample(params, image, mask, key), jax.random.split(rng, self.draws)
        )
        return drawn[jnp.argmin(misfits[:, 0]), 0]

    def _descent(self, model, params, image, mask, rng):
        optimizer = optax.adam(self.learning_rate)

        def misfit(noise):
            drawn, misfits = model.sample(params, image, mask, rng, noise)
            return misfits[0], drawn[0]

        def one_round(carry, _):
            noise, state, least, best = carry
            (value, drawn), slope = jax.value_and_grad(misfit, has_aux=True)(noise)
            best = jnp.where(value < least, drawn, best)
            update, state = optimizer.update(slope, state)
            return (noise + update, state, jnp.minimum(value, least), best), None

        noise = jax.random.normal(rng, (1, *model.noise_shape))
        start = noise, optimizer.init(noise), jnp.float32(jnp.inf), image[0]
        (_, _, _, best), _ = jax.lax.scan(one_round, start, length=self.rounds)
        return best
