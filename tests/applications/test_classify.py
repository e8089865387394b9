"""Classification with few labels: losses, what a method may see, and that it learns."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

pytest.importorskip("torchvision")

from ganfast import models
from ganfast.applications.classifier import finite, settle
from ganfast.applications.classify import (
    METHODS,
    Options,
    check,
    classify,
    protocol,
)
from ganfast.applications.classify import features as features_module
from ganfast.applications.classify.sgan import (
    SemiSupervised,
    Supervised,
    discriminator_loss,
    feature_matching_loss,
)
from ganfast.applications.classify.task import SETTLING_BATCHES, Task
from ganfast.applications.consistency import Consistency
from ganfast.applications.labelled import LabelledData, load_labelled
from ganfast.applications.updates import in_one_pass
from ganfast.models.encoder import Encoder
from ganfast.training import DataError, DivergenceError, ImageData
from ganfast.training.progress import silent

STILL = {"shift": 0.0, "degrees": 0.0, "stretch": 0.0}
TINY = Options(16, width=4, latent=6, batch_size=8, noise=0.0, precision="fp32", **STILL)


def halves(count: int) -> ImageData:
    """Make noisy images whose bright half, left or right, is their class."""
    rng = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 80, (count, 1, 16, 16), generator=rng, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        image[..., 8 * label : 8 * label + 8] += 150
    return ImageData("halves", images, labels)


EASY = LabelledData(halves(64), halves(40), ("left", "right"))


def task(options: Options = TINY, labelled: int = 4) -> Task:
    torch.manual_seed(0)
    chosen = torch.arange(labelled)
    return Task(EASY.train, chosen, EASY.train.labels[chosen], 2, options, seed=0)


def assert_same_gradients(network: torch.nn.Module, expected: Sequence[torch.Tensor]) -> None:
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        assert (parameter.grad - gradient).norm() <= 1e-9 * gradient.norm()


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Draw networks and noise, and read images, in float64: roundings then hide nothing."""
    for module in ("ganfast.training.batches", "ganfast.applications.classify.task"):
        monkeypatch.setattr(f"{module}.as_float", lambda images: images.double() / 127.5 - 1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_the_loss_is_that_of_a_softmax_with_one_more_class():
    real, fake = torch.randn(5, 3), torch.randn(7, 3)
    of_real, of_fake = (
        torch.cat([logits, torch.zeros(len(logits), 1)], 1).softmax(1)[:, -1]
        for logits in (real, fake)
    )
    expected = -(1 - of_real).log().mean() / 2 - of_fake.log().mean() / 2
    torch.testing.assert_close(discriminator_loss(real, fake), expected)


def test_the_loss_is_finite_where_exponentials_are_not():
    huge = torch.full((2, 3), 300.0, requires_grad=True)
    loss = discriminator_loss(-huge, huge)
    loss.backward()
    assert loss.item() == pytest.approx(300, rel=1e-2)
    assert huge.grad.isfinite().all()


def test_feature_matching_compares_means_and_holds_real_images_fixed():
    real, fake = (torch.randn(6, 4, requires_grad=True) for _ in range(2))
    loss = feature_matching_loss(real, fake)
    expected = sum((real[:, f].mean() - fake[:, f].mean()) ** 2 for f in range(4)) / 4
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert real.grad is None
    assert fake.grad is not None


@pytest.mark.usefixtures("float64")
def test_an_update_has_the_gradients_of_the_formulas():
    """Cross-entropy on logits (no second softmax), each pass's statistics, feature matching."""
    options = replace(TINY, shift=0.2, degrees=20.0, stretch=0.2, consistency=0.7, threshold=0.9)
    method = SemiSupervised(task(options), options)
    method.gan.classifier.head.weight.data.mul_(4)  # so that a second softmax would show
    gan = copy.deepcopy(method.gan)
    mirror = task(options)
    state = torch.random.get_rng_state()
    method.update(0.0)  # a learning rate of 0 keeps the weights for the second half

    torch.random.set_rng_state(state)
    labelled, labels = mirror.labelled_batch()
    real = next(mirror.unlabelled)
    fake = gan.generator(torch.randn(8, *gan.latent))
    still, moved = mirror.consistency.views(real)
    assert not torch.equal(still, moved)
    known, of_moved = gan.classifier(labelled), gan.classifier(moved)
    real_features = gan.classifier.features(still)
    of_real, of_fake = gan.classifier.head(real_features), gan.classifier(fake.detach())
    named = -(known.softmax(1)[torch.arange(8), labels]).log().mean()
    z_real, z_fake = of_real.exp().sum(1), of_fake.exp().sum(1)
    told = -(z_real / (z_real + 1)).log().mean() / 2 - (1 - z_fake / (z_fake + 1)).log().mean() / 2
    chances = of_real.detach().softmax(1)
    aligned = chances / (0.99 * 0.5 + 0.01 * chances.mean(0))  # 0.5: the classes' shares
    aligned = aligned / aligned.sum(1, keepdim=True)
    sure = aligned.max(1).values >= 0.9
    assert 0 < sure.sum() < 8
    chosen = of_moved.log_softmax(1)[torch.arange(8), aligned.argmax(1)]
    loss = named + told + 0.7 * -(chosen * sure).mean()
    expected = torch.autograd.grad(loss, list(gan.classifier.parameters()))
    assert_same_gradients(method.gan.classifier, expected)

    distance = real_features.detach().mean(0) - gan.classifier.features(fake).mean(0)
    expected = torch.autograd.grad(distance.square().mean(), list(gan.generator.parameters()))
    assert_same_gradients(method.gan.generator, expected)


def test_sure_predictions_are_labels_and_others_count_nothing():
    shares = torch.tensor([0.5, 0.5])
    consistency = Consistency(shares, 0.0, 0.0, 0.0, 0.9, 2.0, torch.Generator())
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0], [1.0, 0.0]])  # 0.98, 0.98 and 0.73
    moved = torch.tensor([[1.0, 0.0], [1.0, 0.0], [9.0, 0.0]], requires_grad=True)
    loss = consistency.loss(logits, moved)
    expected = 2 * (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 3
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert moved.grad[2].tolist() == [0.0, 0.0]
    for _ in range(2000):  # one class takes over: its predictions count less and less
        consistency.loss(torch.tensor([[3.0, 0.0]]), moved[:1])
    assert consistency.loss(torch.tensor([[3.0, 0.0]]), moved[:1]).item() == 0


def test_features_are_learned_from_moved_copies_that_stay_on_one_side_of_a_fold(monkeypatch):
    model_selection = pytest.importorskip("sklearn.model_selection")
    seen = {}

    def fit(search, found, labels, groups):
        seen.update(found=found, labels=labels, groups=groups)
        for known, held_out in search.cv.split(found, labels, groups):
            assert not {*groups[known]} & {*groups[held_out]}

    monkeypatch.setattr(model_selection.GridSearchCV, "fit", fit)
    method = features_module.DiscriminatorFeatures(task(labelled=6), TINY)
    copies = method.examples().view(features_module.COPIES, 6, *EASY.train.image_shape)
    for images in copies:  # TINY moves by nothing
        assert torch.equal(images, method.task.labelled_images)
    method.finish()
    assert method._scaler.n_samples_seen_ == SETTLING_BATCHES * TINY.batch_size
    assert seen["labels"].tolist() == [0, 1] * (3 * features_module.COPIES)
    assert seen["groups"].tolist() == [*range(6)] * features_module.COPIES
    options = replace(TINY, shift=0.2)
    method = features_module.DiscriminatorFeatures(task(options, labelled=6), options)
    assert not torch.equal(*method.examples().split(6)[:2])


def test_features_have_their_penalty_chosen_and_pixels_train_nothing():
    pytest.importorskip("sklearn")
    found = {}
    for labelled in (2, 12):
        method = features_module.Pixels(task(labelled=labelled), TINY)
        method.update(1.0)
        method.finish()
        found[labelled] = method._machine
        right = method.predict(EASY.test.images.float() / 127.5 - 1) == EASY.test.labels
        assert right.float().mean() > 0.9
    assert found[12].best_params_["C"] in features_module.PENALTIES
    assert not hasattr(found[2], "best_params_")  # one image a class cannot be split


def test_training_and_predictions_show_their_progress():
    phases = []

    def progress(title, steps):
        phases.append((title, steps))
        return silent(title, steps)

    classify(EASY, "supervised", 4, 0, 7, TINY, progress=progress)
    assert phases == [("supervised", 7), ("predictions", 1)]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_networks_compute_in_the_precision_asked_for(precision, monkeypatch):
    seen = set()
    forward = torch.nn.Conv2d.forward

    def spy(self, images):
        found = forward(self, images)
        seen.add(found.dtype)
        return found

    monkeypatch.setattr(torch.nn.Conv2d, "forward", spy)
    options = replace(TINY, precision=precision)
    for name in ("sgan", "consistency", "supervised"):
        classify(EASY, name, 4, 0, 2, options)
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}


@pytest.mark.usefixtures("float64")
def test_supervised_has_cross_entropy_on_logits():
    method, mirror = Supervised(task(), TINY), task()
    network = copy.deepcopy(method.classifier)
    method.update(0.0)
    images, labels = mirror.labelled_batch()
    loss = functional.nll_loss(network(images).log_softmax(1), labels)
    expected = torch.autograd.grad(loss, list(network.parameters()))
    assert_same_gradients(method.classifier, expected)


def test_one_pass_has_the_numbers_and_statistics_of_three():
    together = models.sgan(width=4, classes=3, noise=0.0).classifier
    apart = copy.deepcopy(together)
    batches = [torch.randn(4, 1, 16, 16) * scale for scale in (1, 2, 3)]
    found = in_one_pass(together, together, *batches)
    for logits, batch in zip(found, batches, strict=True):
        torch.testing.assert_close(logits, apart(batch))
    for one, other in zip(together.buffers(), apart.buffers(), strict=True):
        torch.testing.assert_close(one, other)
    assert all(layer.splits == 1 for layer in together.modules() if hasattr(layer, "splits"))


def test_settled_statistics_are_those_of_the_batches():
    network = models.sgan(width=4, noise=5.0).classifier
    network(torch.randn(9, 1, 16, 16) * 50)
    network.eval()
    batches = [torch.randn(6, 1, 16, 16) for _ in range(3)]
    settle(network, batches)
    inputs = []
    layer = network.body[2]
    layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    for batch in batches:
        network(batch)
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs])
    torch.testing.assert_close(layer.running_mean, means.mean(0))
    assert layer.momentum == 0.1
    assert not any(module.training for module in network.modules())


def test_only_training_adds_noise():
    network = models.sgan(width=4, noise=0.5).classifier
    images = torch.zeros(2, 1, 16, 16)
    noise = network.body[0](images)
    assert noise.std() == pytest.approx(0.5, rel=0.1)
    assert torch.equal(network.eval().body[0](images), images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 20}, "image_size must be one of 16, 28, 32"),
        ({"channels": 2}, "channels must be 1"),
        ({"classes": 0}, "classes must be a positive integer"),
        ({"noise": -1.0}, "noise must not be negative"),
        ({"noise": math.nan}, "noise must not be negative"),
    ],
)
def test_models_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        models.sgan(**options)


@pytest.mark.parametrize("size", [16, 28, 32, 64])
def test_networks_have_the_size_of_their_images(size):
    classifying, conditional = models.sgan(size, 1, 4), models.acgan(size, 1, 4)
    noise, labels = torch.randn(2, 100, 1, 1), torch.tensor([1, 2])
    for images in (classifying.generator(noise), conditional.generator(noise, labels)):
        assert images.shape == (2, 1, size, size)
        assert classifying.classifier(images).shape == (2, 10)
        assert conditional.discriminator(images)[1].shape == (2, 10)
        assert Encoder(size, 1, 4, 9)(images).shape == (2, 9, 1, 1)


@pytest.mark.parametrize("size", [16, 32])
def test_features_are_pooled_from_every_layer(size):
    discriminator = models.dcgan(size, 1, 4).discriminator.eval()
    images = torch.randn(3, 1, size, size)
    found = features_module.pooled_features(discriminator.main, images)
    maps = [4, 8] if size == 16 else [4, 8, 16]
    assert found.shape == (3, sum(maps) * 16)
    first = functional.leaky_relu(discriminator.main[0](images), 0.2)
    window = size // 8
    expected = functional.max_pool2d(first, window).flatten(1)
    torch.testing.assert_close(found[:, : 4 * 16], expected)
    last = discriminator.features(images).flatten(1)  # already 4x4
    torch.testing.assert_close(found[:, -maps[-1] * 16 :], last)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_from_four_labels(name):
    if name in ("features", "pixels"):
        pytest.importorskip("sklearn")
    options = Options(16, width=8, latent=10, batch_size=16, **STILL)
    outcome = classify(EASY, name, 4, 0, 60, options)
    assert outcome.accuracy >= 0.9


@pytest.mark.parametrize("name", [name for name in METHODS if name != "pixels"])
def test_seeds_fix_every_weight(name):
    if name in ("features", "pixels"):
        pytest.importorskip("sklearn")

    def weights(seed: int) -> torch.Tensor:
        seen = []

        def build(*arguments):
            seen.append(METHODS[name](*arguments))
            return seen[0]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(protocol, "METHODS", {name: build})
            classify(EASY, name, 4, seed, 3, TINY)
        networks = seen[0].gan[:2] if hasattr(seen[0], "gan") else [seen[0].classifier]
        return torch.cat([p.flatten() for network in networks for p in network.parameters()])

    first = weights(0)
    torch.manual_seed(5)  # what came before does not matter
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_a_method_sees_few_labels_and_the_test_set_once_at_the_end(monkeypatch):
    log: list[object] = []

    class Spy:
        def __init__(self, given: Task, options: Options) -> None:
            log.append(given)

        def update(self, share: float) -> None:
            log.append(share)

        def finish(self) -> None:
            log.append("finish")

        def predict(self, images: torch.Tensor) -> torch.Tensor:
            log.append("predict")
            return torch.zeros(len(images), dtype=torch.long)

    monkeypatch.setattr(protocol, "METHODS", {"spy": Spy})
    outcome = classify(EASY, "spy", 6, 0, 9, TINY)
    given, *shares, last, only = log
    assert (last, only) == ("finish", "predict")
    assert shares == pytest.approx([1, 1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3])
    assert given.labels.bincount().tolist() == [3, 3]
    brighter = given.labelled_images[..., 8:].mean((1, 2, 3)) > 0
    assert torch.equal(brighter.long(), given.labels)
    tensors = [value for value in vars(given).values() if isinstance(value, torch.Tensor)]
    assert all(len(value) == 6 for value in tensors)
    assert outcome.confusion == [[20, 0], [20, 0]]
    assert outcome.accuracy == 0.5


def test_confusion_has_true_classes_in_rows():
    counts = protocol.confusion(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 2, 2, 1]), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 2], [0, 1, 0]]


def test_labelled_batches_are_drawn_with_their_labels():
    images, labels = task(labelled=2).labelled_batch()
    assert len(images) == 8
    assert torch.equal((images[..., 8:].mean((1, 2, 3)) > 0).long(), labels)


def test_what_does_not_fit_is_refused_before_training():
    with pytest.raises(DataError, match="1 label for 2 classes: each needs one"):
        check(EASY, [4, 1], [0], TINY)
    with pytest.raises(DataError, match="batches of 65 are larger"):
        check(EASY, [4], [0], Options(16, batch_size=65))
    with pytest.raises(DataError, match="66 labels need 33 images"):
        check(EASY, [66], [0], TINY)


def test_weights_that_are_not_finite_are_an_error():
    method = Supervised(task(), TINY)
    method.classifier.head.bias.data.fill_(math.nan)
    method.update(0.0)
    with pytest.raises(DivergenceError, match="not finite"):
        method.predict(torch.zeros(1, 1, 16, 16))
    assert finite(torch.ones(1)) == 1


def test_every_seed_is_checked_before_training():
    labels = torch.tensor([0, 0, 1] * 3)
    few = LabelledData(ImageData("few", torch.zeros(9, 1, 16, 16), labels), EASY.test, ("a", "b"))
    options = Options(16, batch_size=4)
    refused = []
    for seed in range(6):  # the seventh label is of either class, and one has three images only
        try:
            check(few, [7], [seed], options)
        except DataError:
            refused.append(seed)
    assert 0 < len(refused) < 6
    with pytest.raises(DataError, match="7 labels need 4 images"):
        check(few, [7], range(6), options)


def test_sgan_learns_digits_from_twenty_labels():
    pytest.importorskip("sklearn")
    data = load_labelled("digits", image_size=16)
    options = Options(16, width=8, batch_size=16)
    outcome = classify(data, "sgan", 20, 0, 100, options)
    assert outcome.accuracy > 0.6
