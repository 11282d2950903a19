"""Scenes with more objects and chosen pairs, and the scores of both kinds of mask."""

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.data.sprites import PIECE_COLORS, to_model
from slot_attention_nbdev.models.framed import framed_autoencoder
from slot_attention_nbdev.experiments.generalization import draw_pieces, held_out_pairs, mask_scores


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return framed_autoencoder()


@pytest.mark.parametrize("count", [1, 3, 6])
def test_pieces_are_whole_and_as_many_as_asked(count):
    scenes = draw_pieces(8, count, generator(0, "pieces", count))
    for label in scenes["label"]:
        values, sizes = label.unique(return_counts=True)
        assert values.tolist() == list(range(count + 1)) and set(sizes[1:].tolist()) == {100}
    again = draw_pieces(8, count, generator(0, "pieces", count))
    assert torch.equal(scenes["image"], again["image"])


def test_only_allowed_pairs_appear_and_their_colors_are_in_the_image():
    allowed = held_out_pairs()
    scenes = draw_pieces(40, 3, generator(0, "allowed"), allowed)
    assert allowed[scenes["shape"], scenes["hue"]].all()
    assert 0.25 < allowed.float().mean() < 0.4
    for b, k in ((0, 0), (7, 2)):
        seen = scenes["image"][b][scenes["label"][b] == k + 1].float().amax(0) > 0
        assert seen.tolist() == [bool(c) for c in PIECE_COLORS[scenes["hue"][b, k]]]


def test_pairs_are_drawn_evenly():
    scenes = draw_pieces(600, 3, generator(1, "even"))
    counts = torch.zeros(19, 6).index_put_(
        (scenes["shape"].flatten(), scenes["hue"].flatten()), torch.ones(1800), accumulate=True
    )
    expected = 1800 / 114
    # chi squared, 113 degrees of freedom: one in ten thousand
    assert ((counts - expected).square() / expected).sum() < 180


def test_scores_against_scikit_learn(model):
    scenes = draw_pieces(6, 4, generator(0, "scores"))
    ours = mask_scores(model, scenes, num_slots=5, num_iterations=3, batch_size=4)
    random = generator(0, "evaluate")
    parts = []
    with torch.no_grad():
        for image in to_model(scenes["image"]).split(4):
            options = dict(num_slots=5, num_iterations=3, return_attention=True)
            parts.append(model(image, generator=random, **options))
    masks, attention, drawn = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("masks", "attention", "reconstruction")
    )
    maps = torch.nn.functional.interpolate(
        attention[:, -1].mT.unflatten(-1, (12, 12)), (35, 35), mode="bilinear"
    )
    for key, each, least in (("fg_ari", masks, 1), ("attention", maps, 1), ("ari", masks, 0)):
        scores = [
            adjusted_rand_score(truth[truth >= least], mask.argmax(0)[truth >= least])
            for truth, mask in zip(scenes["label"], each)
        ]
        assert ours[key] == pytest.approx(sum(scores) / 6, abs=1e-6)
    error = (drawn - to_model(scenes["image"])).square().mean().item()
    assert ours["n"] == 6 and ours["mse"] == pytest.approx(error, rel=1e-5)


def test_more_draws_reconstruct_no_worse(model):
    scenes = draw_pieces(6, 3, generator(0, "draws"))
    one, four = (mask_scores(model, scenes, n_init=n)["mse"] for n in (1, 4))
    assert four < one


def test_the_number_of_slots_is_chosen_by_the_reconstruction(model):
    scenes = draw_pieces(6, 3, generator(0, "slots"))
    found = mask_scores(model, scenes, num_slots=(3, 4), n_init=2, batch_size=4)
    errors = {}
    image = to_model(scenes["image"])
    for K in (3, 4):
        for words in ((), (1,)):
            with torch.no_grad():
                output = model(image, num_slots=K, generator=generator(0, "evaluate", *words))
            error = (output.reconstruction - image).square().mean((1, 2, 3))
            errors[K] = torch.minimum(errors.get(K, error), error)
    four = errors[4] < errors[3]
    assert 0 < four.sum() < 6
    assert found["num_slots"] == pytest.approx(3 + four.float().mean().item())
    assert found["slots_right"] == pytest.approx(four.float().mean().item())  # pieces and ground
    assert found["mse"] == pytest.approx(torch.minimum(errors[3], errors[4]).mean().item())
    assert "slots_right" not in mask_scores(model, scenes, num_slots=[4])


def test_bad_input():
    for call, words in [
        (lambda: draw_pieces(0, 3), "n: expected an integer ≥ 1"),
        (lambda: draw_pieces(1, 7), "count: expected an integer"),
        (
            lambda: draw_pieces(1, 1, allowed=torch.zeros(19, 6, dtype=torch.bool)),
            "allowed: no pair",
        ),
        (lambda: mask_scores(None, draw_pieces(1, 3), n_init=0), "n_init: expected an integer"),
        (lambda: mask_scores(None, draw_pieces(1, 3), []), "num_slots: expected at least one"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
