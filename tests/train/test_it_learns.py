"A short training of the small model finds pieces that its untrained twin does not."

import pytest
import torch

from slot_attention_nbdev.train.recipes import get_recipe
from slot_attention_nbdev.train.trainer import train

SHORT = dict(steps=400, num_iterations=3, fewer_iterations=0, warmup_steps=100, ema_decay=0.98)


@pytest.mark.slow
@pytest.mark.timeout(600)  # less than a minute of one idle core
def test_a_short_training_beats_its_untrained_control(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recipe = get_recipe("tetrominoes_small", **SHORT, n_init=1, eval_every=400, eval_images=100)
        final = train(recipe, tmp_path / "run", device="cpu", progress=False)["final"]
    finally:
        torch.set_num_threads(threads)
    assert final["fg_ari"] > final["controls"]["untrained"]["fg_ari"] + 0.3, final
