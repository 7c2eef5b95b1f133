"""Attacks on models with known memory."""

import dataclasses
import logging
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from l2l_jax.audit.attacks.base import ATTACKS, Attack
from l2l_jax.audit.attacks.denoising import NoiseOverload, PartialDenoising
from l2l_jax.audit.attacks.foreign_data import ForeignData
from l2l_jax.audit.attacks.fresh_decoder import FreshDecoder
from l2l_jax.audit.attacks.linear_probe import LinearProbe, cross_validated, fit_probe
from l2l_jax.audit.attacks.membership import Membership, true_positives
from l2l_jax.audit.attacks.membership_repeated import MembershipRepeated, decide_membership
from l2l_jax.audit.attacks.patient_relearning import PatientRelearning
from l2l_jax.audit.attacks.relearning import Relearning
from l2l_jax.audit.attacks.residual_knowledge import ResidualKnowledge
from l2l_jax.audit.attacks.sampler_search import SamplerSearch
from l2l_jax.audit.attacks.training import few_of_each_class, halvings
from l2l_jax.audit.attacks.views import Views
from l2l_jax.audit.attacks.weight_noise import WeightNoise
from l2l_jax.audit.bench import Bench
from l2l_jax.audit.comparison import auc
from l2l_jax.audit.run import Audit
from l2l_jax.audit.score import UNATTACKED, Line, best_points
from l2l_jax.config import parse_config, upgrade
from l2l_jax.data.splits import training_sets
from l2l_jax.errors import UserError
from l2l_jax.evals.encoder_features import OUTPUT, EncoderFeatures
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.runner import image_keys, image_rows
from tests.audit.models import Memory, config, remembering
from tests.fixtures.configs import SIZES
from tests.matrix import soak
from tests.train.families import MODELS, params_of

pytestmark = pytest.mark.usefixtures("compiled_once")
CONFIG = dataclasses.replace(config(), model=Memory())


@pytest.fixture(scope="module")
def evaluation(compiled_once, tmp_path_factory):
    return Evaluation(CONFIG, tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def training(evaluation):
    return training_sets(CONFIG.data, evaluation.train, 16)


@pytest.fixture(scope="module")
def bench(evaluation, training):
    return Bench(CONFIG, evaluation, training)


def target(params):
    return SimpleNamespace(name="memory", params=params)


@pytest.mark.parametrize("remembered", ["forget", "retain"])
def test_membership_attack_detects_memorized_images(bench, training, remembered):
    source = getattr(training, remembered)
    measured = Membership().run("membership", bench, target(remembering(source)), 0)["0"]
    members, others = measured["members"]["mse"], measured["others"]["mse"]
    if remembered == "forget":
        assert auc(members, others) > 0.95 and true_positives(members, others, 0.01) > 0.9
    else:
        assert auc(members, others) == pytest.approx(0.5, abs=0.06)


def test_true_positive_rate_at_a_false_positive_rate():
    members = np.array([0.5, 0.9, 1.5, 2.0, 50.0])
    assert true_positives(members, np.arange(100.0), 0.01) == 2 / 5
    assert true_positives(members, np.arange(1000.0), 0.001) == 2 / 5


def test_membership_deciders_find_only_a_planted_leak():
    """In the shadow model, errors of members vary less across masks; otherwise nothing differs."""
    rng = np.random.default_rng(0)
    spread = {"members": 0.3, "others": 1.0, "shadow_members": 0.3, "shadow_others": 1.0}
    features = {name: rng.normal(0, std, (150, 4)) for name, std in spread.items()}
    result = decide_membership(features, has_noise=False)
    assert list(result) == ["mean", "gaussians", "network"]
    ends = "members", "others"
    accuracies = {
        name: [auc(*(scores[f"{prefix}{end}"]["score"] for end in ends)) for prefix in ("", "shadow_")]
        for name, scores in result.items()
    }
    assert min(accuracies["gaussians"]) > 0.9 and min(accuracies["network"]) > 0.9
    assert accuracies["mean"] == pytest.approx([0.5, 0.5], abs=0.09)  # standard error 0.033
    best = best_points({"a": result}, Line("a", "a"))["auc"]
    assert best.point == max(accuracies, key=lambda n: accuracies[n][1])  # chosen on the shadow model
    same = {name: features["others"] for name in spread}
    for scores in decide_membership(same, has_noise=True).values():
        assert auc(scores["members"]["score"], scores["others"]["score"]) == 0.5


def test_repeated_membership_attack_uses_a_shadow_model(bench, training, monkeypatch):
    """The shadow model remembers half of the retain validation images, the model all forget images."""
    shadow = remembering(bench.validation.retain, range(0, len(bench.validation.retain), 2))
    monkeypatch.setattr(bench, "fit", lambda *_: shadow)
    result = MembershipRepeated(members=50).run("m", bench, target(remembering(training.forget)), 0)
    for decider, sets in result.items():
        assert len(sets["members"]["score"]) == 50
        assert auc(sets["members"]["score"], sets["others"]["score"]) > 0.9, decider


class Lottery(Memory):
    """A model that fills the mask with noise, and reports its misfit."""

    why_no_samples = why_no_noise = ""

    def sample(self, params, images, mask, rng, noise=None):
        noise = jax.random.normal(rng, images.shape) if noise is None else noise
        misfit = jnp.square(noise - images)[:, mask].mean((1, 2))
        return jnp.where(mask[None, ..., None], noise, images), misfit

    def denoise(self, params, images, mask, rng, start, scale):
        return jnp.where(mask[None, ..., None], images + start * scale, images)


@pytest.fixture(scope="module")
def lottery(evaluation, training):
    return Bench(dataclasses.replace(CONFIG, model=Lottery()), evaluation, training)


def test_sampler_search_keeps_the_best_sample_and_descends(lottery, evaluation):
    attack = SamplerSearch(draws=4, rounds=20)
    result = attack.run("sampler_search", lottery, target({"encoder": np.zeros(1)}), 0)
    tests = evaluation.tests["forget"]
    rows = image_rows(tests.read(np.arange(10)), "forget")
    for number, key in enumerate(image_keys(CONFIG.seed, rows)):
        noise = jax.vmap(lambda k: jax.random.normal(k, (16, 16, 3)))(jax.random.split(key, 4))
        errors = np.square(np.asarray(noise) - rows["images"][number])[:, lottery.mask].mean((1, 2))
        assert result["draws"]["forget"]["mse"][number] == pytest.approx(errors.min(), rel=1e-4)
    assert result["descent"]["forget"]["mse"].mean() < 0.2 * result["draws"]["forget"]["mse"].mean()


def test_denoising_attacks_change_the_sampler(lottery):
    """Errors of this model are the square of fraction and scale."""
    nothing = target({"encoder": np.zeros(1)})
    half = PartialDenoising().run("partial_denoising_50", lottery, nothing, 0)["0"]["forget"]["mse"]
    np.testing.assert_allclose(half, 0.25, rtol=1e-4)
    points = NoiseOverload((1.0, 1.5)).run("noise_overload", lottery, nothing, 0)
    for name, scale in (("x1", 1.0), ("x1.5", 1.5)):
        np.testing.assert_allclose(points[name]["forget"]["mse"], scale**2, rtol=1e-4)


def test_learning_rate_is_selected_on_validation_images(bench, monkeypatch):
    """The learning rate 0.02 is best on validation images by construction, 0.06 is best on test images."""
    errors = {0.01: (0.5, 0.3), 0.02: (0.2, 0.4), 0.06: (0.6, 0.1)}

    def train(target, variant, training, measured_at, seed):
        assert training.steps == measured_at[-1] == (8 if "tuning" in variant else 4)
        on_validation, on_test = errors[round(training.learning_rate, 3)]
        labels, one = np.zeros(2, int), np.ones(2)
        sets = {"validation": on_validation, "forget": on_test}
        return {"4": {name: {"error": x * one, "label": labels} for name, x in sets.items()}}

    monkeypatch.setattr(bench, "train", train)
    attack = PatientRelearning(4, 8, 0.02, tuning_steps=8, rate_factors=(0.5, 1.0, 3.0))
    start = {"validation": {"error": np.ones(2)}, "forget": {"error": np.ones(2), "label": np.zeros(2, int)}}
    for name, title in attack.variants(bench).items():
        result = {UNATTACKED: {"0": start}, name: attack.run(name, bench, target({}), 0)}
        best = best_points(result, Line(name, title, is_curve=True))["error"]
        assert best.point.startswith("0.02 ")
        np.testing.assert_array_equal(best.sample[0], [0.4, 0.4])


def test_residual_knowledge_of_remembered_images(bench, evaluation):
    tests = evaluation.tests["forget"]
    everything = {"encoder": tests.read(np.arange(len(tests))).images}
    attack = ResidualKnowledge(changes=2, pixel_change=1.0)
    result = attack.run("r", bench, target(everything), 0)["0"]["forget"]
    right = bench.measure(everything, "", ("forget",))["forget"]["right"]
    assert result["mse"].max() < 1e-12
    np.testing.assert_array_equal(result["right"], right)


def test_unrelated_images_are_generated_general_or_of_another_source(bench):
    noise, again, other = (ForeignData(count=3).training_images("", bench, seed) for seed in (0, 0, 1))
    assert len(noise) == 3 and (noise[2]["image"] == again[2]["image"]).all()
    assert (noise[2]["image"] != other[2]["image"]).any()
    assert "boot" in str(ForeignData(images="fashion").training_images("", bench, 0).class_names).lower()
    with pytest.raises(UserError, match="foreign_data.images is 'general', but config.data.general is empty"):
        ForeignData(images="general").check(bench)


def test_unsupported_attacks_are_rejected_or_skipped(evaluation, training, tmp_path, caplog, monkeypatch):
    def audit_of(attacks):
        audit = dataclasses.replace(CONFIG.audit, attacks=attacks)
        return Audit(dataclasses.replace(CONFIG, audit=audit), evaluation, training, tmp_path)

    message = "names sampler_search, which cannot be run: its reconstructions are not drawn at random"
    with pytest.raises(UserError, match=message):
        audit_of(("sampler_search",))
    monkeypatch.setattr(logging.getLogger("l2l_jax"), "propagate", True)
    caplog.set_level("INFO", "l2l_jax")
    thorough = audit_of(("thorough",))
    names = {line.name for line in thorough.lines}
    assert {"foreign_data", "membership_repeated", "residual_knowledge", "retain_tuning"} <= names
    assert "sampler_search" not in names and "attack noise_overload is left out" in caplog.text
    monkeypatch.setattr(Audit, "_findings", lambda *_: {})
    thorough.run({"model": remembering(training.forget, range(3))})
    assert re.search(r"thorough audit of 1 models takes about [0-9]+ (s|minutes)", caplog.text)


def test_views_find_images_remembered_under_a_transform(bench, evaluation):
    """Remembered flipped images are found only by the view "flip"."""
    tests = evaluation.tests["forget"]
    mirrored = {"encoder": tests.read(np.arange(len(tests))).images[:, :, ::-1]}
    attack = Views()
    sides = ("left_8", "right_8", "top_8", "bottom_8")
    names = [f"view_{n}" for n in ("flip", "noise", "centre_4", *sides, "gradient")]
    assert set(attack.variants(bench)) == set(names)
    error = [attack.run(n, bench, target(mirrored), 0)["0"]["forget"]["mse"].mean() for n in names[:4]]
    assert error[0] < 1e-12 and min(error[1:]) > 0.01


@pytest.mark.parametrize("classes", [5, 1])
def test_probe_separates_classes(bench, training, classes):
    """Features equal to the class are decoded in all cases; with one class, forget versus retain."""
    labels = np.asarray(training.forget.labels) if classes > 1 else np.full(len(training.forget), 5)
    forget = SimpleNamespace(labels=labels)

    def features(params, images, draws):
        names = np.asarray(images.labels) if classes > 1 else np.where(np.asarray(images.labels) > 4, 5, 0)
        noise = np.random.default_rng(0).standard_normal((len(names), draws, 10))
        coded = np.eye(10)[names][:, None] + 0.01 * noise
        return {"useless": np.ones((len(names), draws, 3)), "classes": coded}, names

    model = SimpleNamespace(
        training=SimpleNamespace(forget=forget, retain=None),
        sets=bench.sets,
        features=features,
        shared=lambda key, make: bench.sets["retain" if key == "probe retain" else "forget"],
    )
    points = LinearProbe().run("linear_probe", model, target(None), 0)
    assert set(points) == {"useless", "classes"}
    for name in ("validation", "forget"):
        right, label = points["classes"][name]["right"], points["classes"][name]["label"]
        assert (right == 1).all() and len(np.unique(label)) == max(classes, 2)
        assert points["useless"][name]["right"].mean() < 0.7


def test_probe_uses_two_fold_cross_validation():
    """Labels are the sign of a feature; they differ in half of a class, in one sample of four."""
    labels, halves = np.repeat([0, 1], 20), np.where(np.arange(40) % 2, -1, 1)
    features = (labels * 2.0 - 1)[:, None, None] * np.array([1, 1, 1, -1])[None, :, None]
    np.testing.assert_array_equal(cross_validated(features, labels), np.full(40, 0.75))
    np.testing.assert_array_equal(cross_validated(features * halves[:, None, None], labels), [0.25] * 40)


@pytest.mark.filterwarnings("error")
def test_probe_converges_and_matches_an_unregularized_probe():
    pixels, labels = load_digits(return_X_y=True)
    right = fit_probe(pixels[::2, None], labels[::2])
    peer = LogisticRegression(C=10, max_iter=5000).fit(pixels[::2] / 16, labels[::2])
    expected = (peer.predict(pixels[1::2] / 16) == labels[1::2]).mean()
    assert right(pixels[1::2, None], labels[1::2]).mean() == pytest.approx(expected, abs=0.02)


def test_weight_noise_has_the_stated_scale():
    noises = []
    fake = SimpleNamespace(seed=lambda repetition: 7, measure=lambda params, title: noises.append(params))
    params = {part: {"w": np.random.default_rng(0).normal(0, 3, 5000)} for part in ("encoder", "decoder")}
    points = WeightNoise(levels=(0.01, 0.1)).run("weight_noise", fake, target({**params, "tokenizer": 1}), 0)
    assert list(points) == ["0.01", "0.1"] and noises[0]["tokenizer"] == 1
    for level, changed in zip((0.01, 0.1), noises, strict=True):
        noise = changed["decoder"]["w"] - params["decoder"]["w"]
        assert noise.std() == pytest.approx(3 * level, rel=0.05)


class Straight(Memory):
    """A model that fills the mask with the mean of the visible pixels times a factor."""

    def inpaint(self, params, images, mask, rng):
        mean = images[:, ~mask].mean(axis=1)[:, None, None]
        return jnp.where(mask[None, ..., None], jnp.clip(mean, 0, 1), images)


def test_gradient_view_uses_the_full_perturbation_budget(evaluation, training):
    """A mean of pixels can be changed by exactly as much as each of them."""
    bench = Bench(dataclasses.replace(CONFIG, model=Straight()), evaluation, training)
    result = Views(25.5).run("view_gradient", bench, target({"encoder": np.zeros(1)}), 0)["0"]
    tests = evaluation.tests["forget"]
    images = tests.read(np.arange(len(tests))).images
    inside, outside = images[:, bench.mask], images[:, ~bench.mask]
    reached = [np.clip(outside + move, 0, 1).mean(1) for move in (-0.1, 0.1)]
    best = np.clip(inside.mean(1), *reached)  # the mean reconstruction nearest to the truth
    least = np.square(inside - best[:, None]).mean((1, 2))
    before = np.square(inside - outside.mean(1)[:, None]).mean((1, 2))
    errors = result["forget"]["mse"]
    assert (errors >= least - 1e-6).all() and (errors <= before + 1e-6).all()
    assert np.mean(errors - least) < 0.1 * np.mean(before - least)


@pytest.mark.slow
@pytest.mark.parametrize("field", [soak("remat"), "scan"])
def test_layer_features_are_means_over_positions(evaluation, field):
    model = dataclasses.replace(config().model, width=8, depth=2, num_heads=2, **{field: True})
    params, tests = params_of(model), evaluation.tests["forget"]
    features, labels = EncoderFeatures(model, 256, seed=3, draws=2)(params, tests)
    assert list(features) == ["patch_embed", "blocks_0", "blocks_1", "norm", OUTPUT]
    np.testing.assert_array_equal(labels, tests.labels)
    rows = image_rows(tests.read(np.arange(len(tests))), "features")

    @jax.jit
    def encode(params, image, key):
        return model.encode(params["encoder"], model.corrupt(params, image[None], key))[0].mean(0)

    keys = jax.vmap(lambda key: jax.random.split(key, 2))(image_keys(3, rows))
    expected = jax.vmap(lambda x, two: jax.vmap(lambda k: encode(params, x, k))(two))(rows["images"], keys)
    assert not np.allclose(expected[:, 0], expected[:, 1])
    np.testing.assert_allclose(features[OUTPUT], expected, atol=1e-5)
    np.testing.assert_allclose(features["norm"], expected, atol=1e-5)


MIDDLE = ["input_blocks_0_0", "input_blocks_1_0", "middle_block_0", "middle_block_1", "middle_block_2"]
DOWN = ["conv_in", "down_blocks_0_resnets_0", "down_blocks_0_attentions_0"]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "layers"), [("palette", MIDDLE), soak("latent_diffusion", DOWN)])
def test_unet_skip_connections_appear_once_among_layers(evaluation, family, layers):
    model = dataclasses.replace(MODELS[family], image_size=16)
    features, _ = EncoderFeatures(model, 256, seed=3)(params_of(model), evaluation.tests["forget"])
    *names, output = features
    assert output == OUTPUT and set(layers) < set(names)
    values = [features[name] for name in names]
    assert not any(np.array_equal(a, b) for i, a in enumerate(values) for b in values[:i])
    np.testing.assert_array_equal(features[OUTPUT], values[-1])


def test_shots_are_balanced_over_classes_and_differ_by_seed(training):
    labels = np.asarray(few_of_each_class(training.forget, 12, 0, "shots").labels)
    assert sorted(np.unique(labels, return_counts=True)[1]) == [2, 2, 2, 3, 3]

    first, again, other = (
        {chosen[i]["name"] for i in range(12)}
        for chosen in (few_of_each_class(training.forget, 12, seed, "shots") for seed in (0, 0, 1))
    )
    assert len(first) == 12 and first == again != other
    with pytest.raises(UserError, match=f"asks for 9999 forget images, but there are {len(training.forget)}"):
        few_of_each_class(training.forget, 9999, 0, "shots")


def test_training_images_of_attacks(bench, training):
    """Few forget images, alone or balanced with retain images; retain images or all images."""
    retain, forget = len(training.retain), len(training.forget)
    for attack, variant, count, steps in (
        (Relearning(shots=(5, 8), drawings=3), "relearning_8", 8, 2 * 3 * 50),
        (Relearning(shots=(5, 34, 101), drawings=3), "relearning_34", 34, (3 + 2 + 1) * 50),
        (PatientRelearning(shots=5), "patient_relearning", 2 * retain, 3 * (300 + 1500)),
        (FreshDecoder(), "fresh_decoder_retain", retain, 2 * 600),
        (FreshDecoder(), "fresh_decoder_all", retain + forget, 2 * 600),
    ):
        attack.check(bench)
        assert variant in attack.variants(bench)
        assert len(attack.training_images(variant, bench, 0)) == count
        assert attack.work(bench).trained == steps * attack.batch_size


def test_relearning_is_averaged_over_samples(training):
    chosen = []

    def train(target, variant, what, steps, seed):
        chosen.append({what.images[i]["name"] for i in range(len(what.images))})
        mse = np.float32([len(chosen), 2.0 * len(chosen)])  # 1, 2, 3 and 2, 4, 6 over the drawings
        return {str(step): {"forget": {"mse": mse + step, "label": np.int64([0, 1])}} for step in steps}

    model = dataclasses.replace(config().model, **SIZES)
    fake = SimpleNamespace(model=model, training=training, seed=lambda repetition: repetition, train=train)
    points = Relearning(steps=20, shots=(4,), drawings=3).run("relearning_4", fake, None, 0)
    assert list(points) == ["10", "20"]
    np.testing.assert_allclose(points["10"]["forget"]["mse"], [12.0, 14.0])
    np.testing.assert_array_equal(points["20"]["forget"]["label"], [0, 1])
    assert [len(names) for names in chosen] == [4, 4, 4] and len(set.union(*chosen)) > 4


def test_fresh_decoder_is_reinitialized_with_the_same_encoder():
    assert halvings(400, 5) == (25, 50, 100, 200, 400)
    model = dataclasses.replace(config().model, **SIZES)
    assert Relearning().objective(model).trained == ("encoder", "decoder")
    task = FreshDecoder().objective(model)
    assert task.trained == ("decoder",) and task.frozen == ("encoder",)
    params = params_of(model)
    started = task.start(params, jax.random.key(1))
    assert started["encoder"] is params["encoder"]
    fresh = started["decoder"]["decoder_embed"]["kernel"]
    assert np.abs(fresh - params["decoder"]["decoder_embed"]["kernel"]).max() > 0.01


@dataclasses.dataclass(frozen=True)
class Forgetful(Attack):
    title, source, cost = "fewer memories", "a test", "a reconstruction of the forget images"
    is_curve = True

    kept: tuple[int, ...] = (7,)

    def run(self, variant, bench, target, seed):
        memory = target.params["encoder"]
        return {str(n): bench.measure({"encoder": memory[:n]}, f"{n} memories") for n in self.kept}


def test_user_defined_attack_runs_and_is_stored(evaluation, training, tmp_path, monkeypatch):
    ATTACKS.register("forgetful")(Forgetful)
    raw_config = config().describe() | {"plugins": [__name__]}
    raw_config["audit"] |= {"attacks": ["forgetful"], "forgetful": {"kept": [1, 3]}}
    settings = dataclasses.replace(parse_config(upgrade(raw_config)), model=Memory())
    runner = Audit(settings, evaluation, training, tmp_path / "audit")
    assert [line.name for line in runner.lines] == ["no_attack", "forgetful"]
    models = {"model": remembering(training.forget, range(20))}
    result = runner.run(models)["model"]["forgetful"]
    assert list(result) == ["1", "3"] and set(result["3"]) == {"validation", "forget"}
    monkeypatch.setattr(Bench, "measure", None)
    jax.tree.map(np.testing.assert_array_equal, runner.run(models)["model"]["forgetful"], result)
