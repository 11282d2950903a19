"""ARI against scikit-learn, overlaps against brute force, over partitions of every kind."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.metrics.segmentation import (
    adjusted_rand_index,
    check_counted,
    contingency,
    count_masks,
    foreground_ari,
    mean_best_overlap,
    mean_iou,
    segmentation_metrics,
    table_scores,
    to_labels,
)


@st.composite
def batches(draw, max_labels=6, max_pixels=40):
    """Truth and prediction of a few images: random, constant, all different, equal, renamed.

    Empty ones too.
    """
    B, N = draw(st.integers(1, 4)), draw(st.integers(0, max_pixels))
    row = lambda: st.one_of(
        st.lists(st.integers(0, max_labels - 1), min_size=N, max_size=N),
        st.integers(0, max_labels - 1).map(lambda label: [label] * N),
        st.just([i % max_labels for i in range(N)]),
    )
    true = [draw(row()) for _ in range(B)]
    renamed = lambda labels: [(label * 5 + 3) % 7 for label in labels]
    pred = [draw(st.one_of(row(), st.just(t), st.just(renamed(t)))) for t in true]
    dtype = draw(st.sampled_from([torch.uint8, torch.int16, torch.int64]))
    return tuple(torch.tensor(x, dtype=dtype).view(B, N) for x in (true, pred))


def sklearn_ari(true, pred, foreground=False):
    keep = [t > 0 if foreground else np.ones(len(t), bool) for t in true.numpy()]
    return torch.tensor(
        [adjusted_rand_score(t[k], p[k]) for t, p, k in zip(true.numpy(), pred.numpy(), keep)],
        dtype=torch.float64,
    )


def iou(true, pred, t, p):
    a, b = true == t, pred == p
    return (a & b).sum() / (a | b).sum()


def brute_force_miou(true, pred):
    objects, segments = sorted(set(true.tolist()) - {0}), sorted(set(pred.tolist()))
    if not objects:
        return math.nan
    table = [[iou(true, pred, t, p) for p in segments] + [0.0] * len(objects) for t in objects]
    columns = range(len(table[0]))
    return max(
        sum(row[c] for row, c in zip(table, chosen))
        for chosen in itertools.permutations(columns, len(objects))
    ) / len(objects)


def brute_force_mbo(true, pred):
    objects = set(true.tolist()) - {0}
    if not objects:
        return math.nan
    return sum(max(iou(true, pred, t, p) for p in set(pred.tolist())) for t in objects) / len(
        objects
    )


def close(ours, oracle):
    torch.testing.assert_close(
        ours, torch.as_tensor(oracle, dtype=torch.float64), rtol=0, atol=1e-12, equal_nan=True
    )


@settings(max_examples=150, deadline=None)
@given(batches(max_labels=9))
def test_ari_equals_scikit_learn(batch):
    close(adjusted_rand_index(*batch), sklearn_ari(*batch))
    close(foreground_ari(*batch), sklearn_ari(*batch, foreground=True))


@settings(max_examples=60, deadline=None)
@given(batches(max_labels=5, max_pixels=25))
def test_overlaps_equal_brute_force(batch):
    true, pred = batch
    close(
        mean_iou(true, pred),
        [brute_force_miou(*scene) for scene in zip(true.numpy(), pred.numpy())],
    )
    close(
        mean_best_overlap(true, pred),
        [brute_force_mbo(*scene) for scene in zip(true.numpy(), pred.numpy())],
    )


@settings(max_examples=40, deadline=None)
@given(batches())
def test_one_by_one_is_the_same(batch):
    together = segmentation_metrics(*batch)
    assert list(together) == ["fg_ari", "ari", "miou", "mbo"]
    for key, function in (
        ("fg_ari", foreground_ari),
        ("ari", adjusted_rand_index),
        ("miou", mean_iou),
        ("mbo", mean_best_overlap),
    ):
        close(function(*batch), together[key])
        close(torch.cat([function(t[None], p[None]) for t, p in zip(*batch)]), together[key])


def test_six_objects_against_every_permutation():
    true = torch.randint(7, (4, 60), generator=generator(0))
    pred = torch.randint(6, (4, 60), generator=generator(1))
    tables = [
        [[iou(true[b].numpy(), pred[b].numpy(), t, p) for p in range(6)] for t in range(1, 7)]
        for b in range(4)
    ]
    best = [
        max(
            sum(table[i][p] for i, p in enumerate(chosen))
            for chosen in itertools.permutations(range(6))
        )
        / 6
        for table in tables
    ]
    close(mean_iou(true, pred), best)


def test_full_size_images():
    """Pair counts of 128 x 128 pixels are near 2^28, their products near 2^56: more than float32 or
    an int32 holds.
    """
    true = torch.randint(11, (3, 128, 128), generator=generator(2))
    pred = torch.where(
        torch.rand(true.shape, generator=generator(3)) < 0.8,
        true,
        torch.randint(7, true.shape, generator=generator(4)),
    )
    close(adjusted_rand_index(true, pred), sklearn_ari(true.flatten(1), pred.flatten(1)))
    assert contingency(true, pred).sum() == true.numel()


def test_many_labels_and_images():
    "More triples than a 16-bit number holds."
    true, pred = (
        torch.randint(k, (40, 300), generator=generator(k), dtype=torch.uint8) for k in (255, 200)
    )
    close(adjusted_rand_index(true, pred), sklearn_ari(true, pred))


def test_masks():
    soft = torch.rand(3, 5, 8, 9, generator=generator(5))
    labels = torch.randint(4, (3, 8, 9), generator=generator(6), dtype=torch.uint8)
    hard = torch.nn.functional.one_hot(soft.argmax(1), 5).movedim(-1, 1)
    assert torch.equal(to_labels(soft).long(), soft.argmax(1).flatten(1))
    for masks in (
        soft,
        soft.double(),
        soft.bfloat16().float(),
        hard,
        hard.bool(),
        255 * hard.to(torch.uint8),
        soft.requires_grad_(),
    ):
        expected = segmentation_metrics(labels, masks.detach().to(torch.float32).argmax(1))
        for key, value in segmentation_metrics(labels, masks).items():
            close(value, expected[key])
    # a truth of masks, background first
    true = torch.nn.functional.one_hot(labels.long(), 4).movedim(-1, 1)
    close(foreground_ari(true, soft.detach()), foreground_ari(labels, soft.detach()))
    assert to_labels(torch.zeros(2, 3, 4, 4)).sum() == 0  # ties go to the lower number
    assert (
        to_labels(torch.full((1, 2, 1, 1), -math.inf).index_fill(1, torch.tensor(1), 0.0)).item()
        == 1
    )


def test_renaming_and_order_do_not_matter():
    true, pred = (torch.randint(5, (4, 100), generator=generator(k)) for k in (7, 8))
    names = torch.randperm(5, generator=generator(9))
    pixels = torch.randperm(100, generator=generator(10))
    for key, value in segmentation_metrics(true, pred).items():
        close(segmentation_metrics(true, names[pred])[key], value)
        close(segmentation_metrics(true[:, pixels], pred[:, pixels])[key], value)


def test_conventions():
    one = lambda *labels: torch.tensor([labels], dtype=torch.uint8)
    empty = one(0, 0, 0, 0)
    assert foreground_ari(empty, one(0, 1, 2, 3)).item() == 1
    assert mean_iou(empty, empty).isnan().all() and mean_best_overlap(empty, empty).isnan().all()
    mixed = mean_iou(torch.cat([empty, one(1, 1, 2, 2)]), torch.cat([empty, one(3, 3, 4, 4)]))
    assert mixed.isnan().tolist() == [True, False] and mixed.nanmean() == 1
    assert foreground_ari(one(0, 3, 3, 3), one(0, 1, 1, 1)).item() == 1
    assert foreground_ari(one(0, 3, 3, 3), one(0, 1, 1, 2)).item() == 0
    assert mean_iou(one(1, 1, 2, 2), one(0, 0, 0, 0)).item() == 0.25  # fewer segments than objects
    assert mean_best_overlap(one(1, 1, 2, 2), one(0, 0, 0, 0)).item() == 0.5
    assert mean_iou(one(0, 0, 1, 1), one(5, 6, 7, 7)).item() == 1  # more
    assert mean_iou(one(0, 0, 1, 1), one(1, 1, 0, 0)).item() == 1  # segment 0 may be an object's


@pytest.mark.parametrize(
    "true, pred, message",
    [
        (torch.zeros(2, 4), torch.zeros(2, 4).long(), "labels: expected integers"),
        (torch.zeros(4).long(), torch.zeros(4).long(), "labels: expected integers"),
        (torch.zeros(1, 0, 4, 4), torch.zeros(1, 4, 4).long(), "masks"),
        (
            torch.zeros(1, 4, 4).long(),
            torch.full((1, 3, 4, 4), math.nan),
            "masks: expected finite numbers",
        ),
        (
            torch.zeros(1, 4, 4).long(),
            torch.zeros(1, 4, 5).long(),
            r"expected the same images, got \[1, 16\] and \[1, 20\]",
        ),
        (torch.zeros(1, 4, 4).long(), torch.zeros(2, 4, 4).long(), "expected the same images"),
        (
            torch.full((1, 4, 4), -1),
            torch.zeros(1, 4, 4).long(),
            "true: expected labels in 0…255, got -1",
        ),
        (torch.zeros(1, 4, 4).long(), torch.full((1, 4, 4), 256), "pred: expected labels in 0…255"),
    ],
)
def test_bad_input(true, pred, message):
    with pytest.raises(InputError, match=message):
        segmentation_metrics(true, pred)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_device():
    true = torch.randint(7, (8, 64, 64), generator=generator(11))
    soft = torch.rand(8, 7, 64, 64, generator=generator(12))
    for key, value in segmentation_metrics(true.cuda(), soft.cuda()).items():
        assert value.is_cuda
        close(value.cpu(), segmentation_metrics(true, soft)[key])


def test_labels_are_not_taken_for_masks():
    label = torch.randint(0, 4, (2, 1, 16, 16), generator=generator(20))
    masks = torch.rand(2, 5, 16, 16, generator=generator(21))
    right = segmentation_metrics(label[:, 0], masks)
    for true, pred in (
        (label, masks),
        (label.byte(), masks),
        (label, masks.argmax(1, keepdim=True)),
    ):
        found = segmentation_metrics(true, pred)
        for name, values in right.items():
            assert found[name].equal(values), name
    film = torch.randint(0, 4, (1, 6, 16, 16), generator=generator(22))
    for odd in (film, film.byte(), film.float(), film > 1, label.float(), label.float() / 255):
        with pytest.raises(InputError, match="could be labels"):
            foreground_ari(odd, odd)
    holes = torch.nn.functional.one_hot(label[:, 0]).movedim(-1, 1)[:, 1:]
    for form in (holes, holes.bool(), holes.float()):
        with pytest.raises(InputError, match="each pixel in one mask"):
            to_labels(form)
    assert to_labels(torch.ones(1, 1, 4, 4)).eq(0).all()  # the masks of a model with one slot


def test_void_pixels_are_left_out():
    true = torch.randint(0, 4, (3, 12, 12), generator=generator(23), dtype=torch.uint8)
    pred = torch.randint(0, 5, (3, 12, 12), generator=generator(24), dtype=torch.uint8)
    void = torch.rand(3, 12, 12, generator=generator(25)) < 0.3
    for label, dtype in ((255, torch.uint8), (-1, torch.int64)):
        marked = true.to(dtype).masked_fill(void, label)
        found = segmentation_metrics(marked, pred, ignore=label)
        for i in range(3):
            kept = ~void[i]
            alone = segmentation_metrics(true[i][kept][None], pred[i][kept][None])
            for name, values in alone.items():
                assert found[name][i] == values[0], name
        for name, score in (("miou", mean_iou), ("mbo", mean_best_overlap)):
            assert score(marked, pred, ignore=label).equal(found[name])
        assert foreground_ari(marked, pred, ignore=label).equal(found["fg_ari"])
        assert adjusted_rand_index(marked, pred, ignore=label).equal(found["ari"])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 7), st.sampled_from([torch.uint8, torch.int64]))
def test_counts_of_a_known_size_give_the_same_scores(seed, K, dtype):
    random = generator(seed)
    true = torch.randint(0, 9, (3, 6, 7), generator=random).to(dtype)
    masks = torch.rand(3, K, 6, 7, generator=random).mul(8).round().div(8)  # ties, too
    masks[0, 0, 0, 0] = 0.1  # no masks of whole numbers
    table = check_counted(count_masks(true, masks), 6 * 7)
    expected = contingency(true, masks)
    assert table[..., : expected.shape[2]].long().equal(expected)
    assert not table[..., expected.shape[2] :].any()
    for key, value in segmentation_metrics(true, masks).items():
        close(table_scores(table)[key], value)
    most = int(true.max()) + 1
    assert count_masks(true, masks, most).equal(count_masks(true, masks)[:, :most])
    with pytest.raises(InputError, match="labels in 0…255"):  # one label less: it is missed
        check_counted(count_masks(true, masks, most - 1), 6 * 7)


def test_counting_looks_at_no_number():
    "On the meta device there are no numbers: a value that is looked at is an error."
    true = torch.zeros(2, 4, 5, dtype=torch.uint8, device="meta")
    masks = torch.zeros(2, 3, 4, 5, device="meta")
    assert count_masks(true, masks).shape == (2, 256, 3)
    with pytest.raises((RuntimeError, NotImplementedError)):
        contingency(true, masks)


def test_a_pixel_that_was_not_counted_is_missed():
    true = torch.randint(0, 4, (3, 5, 5), generator=generator(26))
    masks = torch.rand(3, 2, 5, 5, generator=generator(27))
    wrong = [true.clone() for _ in range(2)]
    wrong[0][2, 0, 0], wrong[1][2, 4, 4] = -1, 256
    odd = [masks.clone() for _ in range(2)]
    odd[0][2, 1, 3, 3], odd[1][2, 0, 0, 0] = math.nan, math.inf
    for labels, maps in [(each, masks) for each in wrong] + [(true, each) for each in odd]:
        with pytest.raises(InputError, match="in 1 of 3 images, the first is image 2"):
            check_counted(count_masks(labels, maps), 25)
    with pytest.raises(InputError, match="true: expected shape"):
        count_masks(true[:, :4], masks)


def test_what_cannot_be_counted():
    true = torch.zeros(2, 5, 5, dtype=torch.uint8)
    masks = torch.rand(2, 255, 5, 5, generator=generator(28))
    masks[:, 254, 0, 0] = 2.0
    assert count_masks(true, masks)[:, 0, 254].tolist() == [
        (each.argmax(0) == 254).sum().item() for each in masks
    ]
    for K in (0, 256):
        with pytest.raises(InputError, match=r"masks: expected 1 to 255 of them .* got \[2, "):
            count_masks(true, torch.zeros(2, K, 5, 5))
    for label in (true.float(), true.double() + 0.5, true.cfloat()):
        with pytest.raises(InputError, match="true: expected integer labels .* got torch"):
            count_masks(label, masks)
    for num_labels in (0, 257, 2.0):
        with pytest.raises(InputError, match="num_labels: expected an integer"):
            count_masks(true, masks, num_labels)
