"""Average precision against the original's numbers and a plain loop; scores by property."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.data.sprites import multi_dsprites
from slot_attention_nbdev.metrics.sets import (
    THRESHOLDS,
    area_under_curve,
    average_precision,
    precision_recall,
    property_scores,
)
from slot_attention_nbdev.data.objects import CLEVR, MULTI_DSPRITES, Categorical

CASES = [
    "random",
    "perfect",
    "noisy_low",
    "noisy_mid",
    "noisy_high",
    "duplicates",
    "empty_images",
    "same_attributes",
    "soft",
    "more_slots_than_targets",
    "shuffled_targets",
]


def loop_ap(predictions, targets, threshold, schema=CLEVR):
    "The rules, statement by statement; equal confidences are read as one step."
    groups = [schema.slices[p.name] for p in schema.properties if isinstance(p, Categorical)]
    scale = {p.name: p.high - p.low for p in schema.properties if p.name in schema.position}
    place = lambda row: [row[schema.slices[name].start] * scale[name] for name in schema.position]
    kinds = lambda row: [max(range(s.start, s.stop), key=lambda i: row[i]) for s in groups]
    scenes = [[row for row in rows if row[-1] > 0.5] for rows in targets.double().tolist()]
    objects = sum(map(len, scenes))
    said = sorted(
        ((row[-1], b, row) for b, rows in enumerate(predictions.double().tolist()) for row in rows),
        key=lambda s: -s[0],
    )
    taken = set()
    points = []
    found = 0
    for i, (confidence, b, row) in enumerate(said):
        near = [
            (math.dist(place(true), place(row)), m)
            for m, true in enumerate(scenes[b])
            if kinds(true) == kinds(row)
        ]
        if near and min(near)[0] < threshold and (b, min(near)[1]) not in taken:
            taken.add((b, min(near)[1]))
            found += 1
        if i + 1 == len(said) or said[i + 1][0] != confidence:
            points.append((found / (i + 1), found / objects))
    area, before = 0.0, 0.0
    for i, (_, recall) in enumerate(points):
        area, before = area + (recall - before) * max(p for p, _ in points[i:]), recall
    return area


def scenes(seed, B=6, N=7, M=5, values=None, confidences=50):
    "Few values, so that categories agree by chance, and few confidences, so that there are ties."
    g = generator(seed, "ap")

    def rows(n):
        x = torch.zeros(B, n, 19)
        x[..., :3] = torch.rand(B, n, 3, generator=g)
        for s in ((3, 5), (5, 7), (7, 10), (10, 18)):
            x[..., s[0] : s[1]] = torch.eye(s[1] - s[0])[
                torch.randint(values or 2, (B, n), generator=g)
            ]
        return x

    predictions, targets = rows(N), rows(M)
    take = torch.randint(M, (B, N), generator=g)
    copied = targets.gather(1, take[..., None].expand(-1, -1, 19)) + 0.05 * torch.randn(
        B, N, 19, generator=g
    )
    predictions = torch.where((torch.rand(B, N, 1, generator=g) < 0.6), copied, predictions)
    predictions[..., 18] = torch.randint(confidences, (B, N), generator=g) / confidences
    targets *= torch.rand(B, M, 1, generator=g) < 0.7
    targets[..., 18] = targets[..., 3:5].sum(-1)
    targets[0, 0, :] = predictions[0, 0]
    targets[0, 0, 18] = 1  # at least one
    return predictions, targets


# The original's numbers


@pytest.mark.parametrize("case", CASES)
def test_ap_of_the_original(golden, case):
    arrays = golden("average_precision_clevr.npz")
    thresholds = [math.inf if t == -1 else t for t in arrays["thresholds"].tolist()]
    ours = average_precision(
        torch.as_tensor(arrays[f"{case}/pred"]),
        torch.as_tensor(arrays[f"{case}/attributes"]),
        thresholds,
    )
    assert_close(ours, torch.as_tensor(arrays[f"{case}/ap"]), rtol=0, atol=1e-6)


def test_every_case_of_the_original_is_compared(golden):
    arrays = golden("average_precision_clevr.npz")
    assert sorted(map(str, arrays["case_names"])) == sorted(CASES)
    for k in range(3):
        area = area_under_curve(
            *(
                torch.as_tensor(arrays[f"curve_{k}/{name}"]).double()
                for name in ("precision", "recall")
            )
        )
        assert area.item() == pytest.approx(float(arrays[f"curve_{k}/ap"]), abs=1e-6)
    empty = average_precision(
        torch.as_tensor(arrays["edge_all_empty/pred"]),
        torch.as_tensor(arrays["edge_all_empty/attributes"]),
    )
    assert empty.isnan().all()  # as the original


# The loop


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    confidences=st.sampled_from([2, 5, 10**6]),
    threshold=st.sampled_from(THRESHOLDS),
)
def test_ap_equals_the_loop(seed, confidences, threshold):
    predictions, targets = scenes(seed, confidences=confidences)
    ours = average_precision(predictions, targets, [threshold]).item()
    assert ours == pytest.approx(loop_ap(predictions, targets, threshold), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), confidences=st.sampled_from([2, 5, 10**6]))
def test_ap_ignores_every_order(seed, confidences):
    predictions, targets = scenes(seed, confidences=confidences)
    g = generator(seed, "order")
    images, slots, rows = (torch.randperm(n, generator=g) for n in (6, 7, 5))
    assert_close(
        average_precision(predictions[images][:, slots], targets[images][:, rows]),
        average_precision(predictions, targets),
        rtol=0,
        atol=1e-12,
    )


def test_duplicates_and_ties_by_hand():
    one = torch.zeros(1, 2, 19)
    one[0, 0] = torch.tensor([0.5] * 3 + [1, 0, 1, 0, 1, 0, 0, 1] + [0] * 7 + [1])
    said = one[:, :1].repeat(1, 3, 1)
    ap = lambda *confidence: average_precision(
        torch.cat([said[..., :18], torch.tensor(confidence)[None, :, None]], -1), one, [1.0]
    ).item()
    assert ap(0.9, 0.8, 0.7) == 1  # duplicates after the hit cost nothing
    assert ap(0.9, 0.9, 0.9) == pytest.approx(1 / 3)  # one step: one of three is right
    off = said.clone()
    off[0, 0, 0] += 0.5  # the most confident is too far away
    off[..., 18] = torch.tensor([0.9, 0.8, 0.7])
    assert average_precision(off, one, [1.0]).item() == pytest.approx(1 / 2)
    assert (
        average_precision(off, one, [3.01]).item() == 1
        and average_precision(off, one, [math.inf]).item() == 1
    )
    assert average_precision(off[:, :1], one, [3.0]).item() == 0  # strictly below


def test_a_duplicate_is_not_passed_on():
    "Two equal objects; both statements are nearest to the first, so the second is never found."
    targets = torch.zeros(1, 2, 19)
    targets[0, :] = torch.tensor([0.5] * 3 + [1, 0, 1, 0, 1, 0, 0, 1] + [0] * 7 + [1])
    targets[0, 1, 0] += 0.1
    predictions = targets[:, :1].repeat(1, 2, 1)
    predictions[0, :, 18] = torch.tensor([0.9, 0.8])
    assert average_precision(predictions, targets, [1.0]).item() == 0.5


def test_recall_rises_and_thresholds_nest():
    predictions, targets = scenes(3, B=50, confidences=10**6)
    precision, recall = precision_recall(predictions, targets)
    assert (recall.diff(dim=1) >= 0).all() and recall.max() <= 1 and precision.max() <= 1
    assert (average_precision(predictions, targets).diff() <= 1e-12).all()  # from inf down to 0.125


def test_another_description():
    targets = MULTI_DSPRITES.encode(multi_dsprites(20, generator=generator(0)), max_objects=5)
    predictions = targets.clone()
    predictions[..., :2] += 2 / 32 * torch.randn(20, 5, 2, generator=generator(1))  # two pixels
    predictions[..., -1] = torch.rand(20, 5, generator=generator(2))
    for threshold in (math.inf, 4.0, 2.0):
        ours = average_precision(predictions, targets, [threshold], MULTI_DSPRITES).item()
        assert ours == pytest.approx(
            loop_ap(predictions, targets, threshold, MULTI_DSPRITES), abs=1e-6
        )
    assert property_scores(predictions, targets, MULTI_DSPRITES)["x"] == pytest.approx(
        2 * math.sqrt(2 / math.pi), rel=0.3
    )


# Property by property


def test_property_scores_count_what_was_spoilt():
    targets = CLEVR.encode(
        {
            **{axis: torch.tensor([[0.0, 2.0], [-2.0, 1.0]]) for axis in "xyz"},
            **{
                name: torch.tensor([[0, 1], [1, 0]])
                for name in ("size", "material", "shape", "color")
            },
            "visibility": torch.ones(2, 2),
        },
        max_objects=3,
    )
    predictions = targets.flip(1).clone()
    perfect = property_scores(predictions, targets)
    assert perfect == pytest.approx(
        {
            "x": 0,
            "y": 0,
            "z": 0,
            "size": 1,
            "material": 1,
            "shape": 1,
            "color": 1,
            "found": 1,
            "count": 1,
        },
        abs=1e-6,
    )
    row = int((predictions[0, :, 0] == 0.5).nonzero()[0])
    predictions[0, row, 0] += 0.1  # x off by 0.6 for one of four
    predictions[0, row, 3:5] = torch.tensor([0.0, 1.0])  # the wrong size
    predictions[0, row, 18] = 0.2  # not confident
    scores = property_scores(predictions, targets)
    assert scores["x"] == pytest.approx(0.15, abs=1e-5)
    assert (scores["size"], scores["color"], scores["found"], scores["count"]) == (
        0.75,
        1,
        0.75,
        0.5,
    )


def test_property_scores_of_empty_images_are_nan():
    scores = property_scores(torch.rand(2, 3, 19, generator=generator(0)), torch.zeros(2, 4, 19))
    assert math.isnan(scores["color"]) and math.isnan(scores["x"]) and math.isnan(scores["found"])


# Bad input

p, t = scenes(0)
BAD = [
    (
        "predictions' width",
        lambda: average_precision(p[..., :18], t),
        "predictions: expected shape [B, K, width=19], got [6, 7, 18]",
    ),
    (
        "targets' width",
        lambda: average_precision(p, t[..., :18]),
        "targets: expected shape [B, K, width=19]",
    ),
    (
        "another schema",
        lambda: average_precision(p, t, schema=MULTI_DSPRITES),
        "predictions: expected shape [B, K, width=12]",
    ),
    (
        "another batch",
        lambda: average_precision(p, t[:5]),
        "targets: expected shape [B=6, M, width]",
    ),
    ("NaN", lambda: average_precision(p * math.nan, t), "predictions: expected finite numbers"),
    (
        "no slots",
        lambda: average_precision(p[:, :0], t),
        "predictions: expected at least one image",
    ),
    (
        "no images",
        lambda: property_scores(p[:0], t[:0]),
        "predictions: expected at least one image",
    ),
    ("no rows", lambda: average_precision(p, t[:, :0]), "targets: expected at least one image"),
    (
        "negative threshold",
        lambda: average_precision(p, t, [-1]),
        "thresholds: expected numbers > 0",
    ),
    (
        "NaN threshold",
        lambda: average_precision(p, t, [math.nan]),
        "thresholds: expected numbers > 0",
    ),
    ("no threshold", lambda: average_precision(p, t, []), "thresholds: expected numbers > 0"),
]


@pytest.mark.parametrize("call, words", [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
