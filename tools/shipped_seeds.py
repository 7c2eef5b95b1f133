"""Measure the variation of retrained models across seeds: `python -m tools.shipped_seeds --config=CONFIG`.

Retrains a config's shipped retrained model with other seeds, attacks all retrained models as in the config's
audit, and writes the spread of the recovered knowledge into the metadata of the shipped model. Models and
findings are kept in `--workdir`; rerun the command to resume.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence

from l2l_jax.cli.common import load_config, parse_flags, run_program

SEEDS = (1, 2, 3)
"""Seeds of the retrained models; the shipped model has another seed."""


def main(argv: Sequence[str]) -> None:
    """Retrain (starting at the shipped model's length of training), attack, and update the metadata."""
    raw, workdir = parse_flags(argv)
    from l2l_jax import shipped
    from l2l_jax.audit.run import Audit
    from l2l_jax.audit.score import seed_spread
    from l2l_jax.evals.evaluator import Evaluation
    from l2l_jax.experiment.phase import training_sets
    from l2l_jax.experiment.pretrain import retrain
    from l2l_jax.weights.loading import load_pretrained
    from l2l_jax.weights.saved_models import load_params, save_model
    from tools.make_shipped import training_images

    config = load_config(raw)
    name = config.pretrained + shipped.RETRAINED
    original, shipped_retrained = (
        load_pretrained(shipped.resolved(model), config.family, config.model)
        for model in (config.pretrained, name)
    )
    models = {"shipped": shipped_retrained}
    for seed in SEEDS:
        folder = workdir / f"seed_{seed}"
        if not folder.exists():
            seeded = dataclasses.replace(config, seed=seed)
            images, lengths = training_images(config)
            lengths = [length for length in lengths if length >= shipped.card(name)["length"]]
            retrained = retrain(seeded, original, workdir / f"training_{seed}", lengths, images)
            facts = {**seeded.describe("family", "model", "data", "seed"), "origin": f"{name}, seed {seed}"}
            save_model(folder, retrained.params, facts)
        models[folder.name] = load_params(folder, original)
    evaluation = Evaluation(config, workdir / "evaluation")
    runner = Audit(config, evaluation, training_sets(config, evaluation.train), workdir / "audit")
    findings = runner.run(models)
    card = shipped.card(name)
    spread = card.get("seeds", {}).get("spread", {})  # of attacks that this config leaves out
    spread |= seed_spread(list(findings.values()), runner.lines)
    card["seeds"] = {"count": len(models), "spread": spread}
    (shipped.FOLDER / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
