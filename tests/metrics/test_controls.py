"Controls beside a score: the rules against independent code, and the figures that the text claims."

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.cluster import KMeans

from slot_attention_nbdev.core import InputError
from slot_attention_nbdev.data.sources import evaluation_scenes
from slot_attention_nbdev.metrics.controls import (
    COLOR_RULES,
    control_rows,
    farthest_points,
    hue_islands,
    k_means,
    nearest_color,
    nearest_hue,
    position_blocks,
    position_clusters,
    rule_controls,
    rule_labels,
    rule_scores,
)
from slot_attention_nbdev.metrics.segmentation import adjusted_rand_index


@pytest.fixture(scope="module")
def tetrominoes():
    return evaluation_scenes("tetrominoes", 320)


def same_partition(a, b) -> bool:
    "Whether two labelings group alike, whatever the names of the groups."
    pairs = {(int(x), int(y)) for x, y in zip(np.ravel(a), np.ravel(b))}
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


@pytest.mark.parametrize("seed", range(20))
def test_islands_are_those_of_ndimage(seed):
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(5, 20, 2))
    colors = np.array([[0, 0, 0]] * 4 + [[200, 0, 0], [0, 200, 0]])
    hue = rng.integers(0, len(colors), size)
    shade = rng.uniform(0.5, 1, (*size, 1))  # a hue is a direction
    image = torch.from_numpy((colors[hue] * shade).astype(np.uint8))
    expected = np.zeros(size, dtype=int)
    for k in (4, 5):
        found, _ = ndimage.label(hue == k)
        counts = np.bincount(found.ravel())
        found[counts[found] < max(3, np.ceil(size[0] * size[1] / 255))] = 0
        expected += np.where(found > 0, found + 1000 * k, 0)
    found = hue_islands(image[None], min_pixels=3)[0]
    assert ((found == 0).numpy() == (expected == 0)).all()
    assert same_partition(found, expected)


def test_islands_do_not_reach_into_the_next_image():
    image = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    image[0, 6:, :] = image[1, :2, :] = torch.tensor([255, 0, 0], dtype=torch.uint8)
    image[1, 6:, :] = torch.tensor([255, 0, 0], dtype=torch.uint8)
    assert [each.max() for each in hue_islands(image, min_pixels=4)] == [1, 2]


def test_islands_without_a_pixel_of_background_and_of_noise():
    image = torch.randint(0, 256, (3, 64, 64, 3), generator=torch.Generator().manual_seed(0))
    labels = hue_islands(image.to(torch.uint8), min_difference=-1.0, min_cosine=-2.0)
    assert (labels == 1).all()  # one region, and nothing of it is background
    labels = hue_islands(image.to(torch.uint8), min_pixels=1)
    assert labels.min() >= 0 and labels.max() <= 255  # as many as the metrics can count


@pytest.mark.parametrize("seed", range(10))
def test_k_means_is_that_of_scikit_learn(seed):
    points = torch.rand(60, 2, generator=torch.Generator().manual_seed(seed)).double()
    first = farthest_points(points, points[0], 4)
    theirs = KMeans(4, init=first.numpy(), n_init=1, max_iter=300, tol=0).fit(points.numpy())
    assert same_partition(k_means(points, 4, 300), theirs.labels_)


def test_nearest_color_is_the_nearest_color():
    image = torch.randint(0, 256, (2, 6, 7, 3), generator=torch.Generator().manual_seed(1))
    labels = nearest_color(image.to(torch.uint8), 4)
    for b in range(2):
        pixels = image[b].reshape(-1, 3).numpy().astype(float)
        chosen = [torch.from_numpy(pixels).median(0).values.numpy()]
        for _ in range(3):
            gaps = [min(((p - c) ** 2).sum() for c in chosen) for p in pixels]
            chosen.append(pixels[int(np.argmax(gaps))])
        nearest = [int(np.argmin([((p - c) ** 2).sum() for c in chosen])) for p in pixels]
        assert labels[b].flatten().tolist() == nearest


def test_nearest_hue_does_not_see_brightness():
    image = torch.randint(0, 2, (2, 8, 8, 1), generator=torch.Generator().manual_seed(3))
    image = torch.where(image > 0, torch.tensor([200, 40, 40]), torch.tensor([40, 40, 200]))
    image[:, :, :5] = 100  # gray, the larger part
    dark = (image * torch.linspace(0.5, 1, 8)[:, None]).to(torch.uint8)
    bright = nearest_hue(image.to(torch.uint8), 3)
    assert torch.equal(bright == 0, (image == 100).all(-1))
    assert all(same_partition(a, b) for a, b in zip(bright, nearest_hue(dark, 3)))


def test_position_rules_keep_the_background_and_see_nothing_else():
    true = torch.randint(0, 3, (4, 9, 9), generator=torch.Generator().manual_seed(2))
    for labels in (position_blocks(true), position_clusters(true, 3), position_clusters(true)):
        assert torch.equal(labels == 0, true == 0)
    # other objects on the same pixels change nothing, once their number is given
    other = torch.where(true > 0, 3 - true, 0)
    assert torch.equal(position_clusters(true, 3), position_clusters(other, 3))
    assert position_clusters(true).amax() == 2


def test_color_rules_do_not_see_the_labels(tetrominoes):
    few = {key: tetrominoes[key][:4] for key in ("image", "label")}
    shuffled = few | {"label": few["label"].flip(0)}
    for rule in COLOR_RULES:
        assert torch.equal(rule_labels(few, 4)[rule], rule_labels(shuffled, 4)[rule])


def test_figures_on_tetrominoes(tetrominoes):
    scores = rule_scores(tetrominoes, 4)
    claimed = {
        "islands of one hue": (0.969, 0.998),
        "K-means, K objects": (0.872, None),
        "K-means, K slots": (0.729, None),
        "2 x 2 blocks": (0.616, None),
    }
    for rule, (fg_ari, ari) in claimed.items():
        assert abs(scores[rule]["fg_ari"] - fg_ari) < 0.02, rule
        assert ari is None or abs(scores[rule]["ari"] - ari) < 0.02, rule
    controls = rule_controls(tetrominoes, 4)
    assert controls["color_rule"]["rule"] == "islands of one hue"
    assert controls["position_rule"]["rule"] == "K-means, K objects"
    assert controls["color_rule"]["fg_ari"] == scores["islands of one hue"]["fg_ari"]


def test_figures_on_multi_dsprites():
    scenes = evaluation_scenes("multi_dsprites_colored_on_grayscale", 64)
    controls = rule_controls(scenes, 6)
    assert controls["color_rule"]["rule"] == "nearest of K colors"
    assert min(controls["color_rule"][key] for key in ("fg_ari", "ari", "miou")) > 0.98


def test_scores_are_those_of_the_labels(tetrominoes):
    few = {key: tetrominoes[key][:10] for key in ("image", "label")}
    labels = rule_labels(few, 4)["2 x 2 blocks"]
    by_hand = adjusted_rand_index(few["label"], labels).mean().item()
    assert rule_scores(few, 4)["2 x 2 blocks"]["ari"] == pytest.approx(by_hand)


def test_bad_input(tetrominoes):
    with pytest.raises(InputError, match="there is no label"):
        rule_controls({"image": tetrominoes["image"]}, 4)
    with pytest.raises(InputError, match="there is no image"):
        rule_controls({"label": tetrominoes["label"]}, 4)
    with pytest.raises(InputError, match="num_slots"):
        rule_controls(tetrominoes, 0)


def test_images_without_objects_or_of_one_color():
    scenes = {
        "image": torch.zeros(2, 6, 6, 3, dtype=torch.uint8),
        "label": torch.zeros(2, 6, 6, dtype=torch.uint8),
    }
    controls = rule_controls(scenes, 3)
    assert controls["color_rule"]["ari"] == 1.0  # all of it is background, and found to be
    assert controls["color_rule"]["miou"] != controls["color_rule"]["miou"]  # no object: undefined


def test_the_table():
    scores = {"fg_ari": 0.5, "ari": 0.4, "miou": 0.3}
    controls = {"untrained": scores, "color_rule": {"rule": "a", **scores}}
    rows = control_rows(scores | {"controls": controls})
    assert rows[0] == ("", "FG-ARI", "ARI", "mIoU")
    assert [row[0] for row in rows[1:]] == ["this model", "untrained model", "color rule: a"]
    assert rows[1][1:] == ("0.500", "0.400", "0.300")
    rows = control_rows({"ap_inf": 0.9, "controls": {"attention": scores, **controls}})
    assert [row[0] for row in rows[1:3]] == ["this model's attention", "untrained model"]
