"""The embedded reward model: what it learns, order, determinism, folders."""

import math

import numpy as np
import pytest
import torch

from configs.reward import EmbeddedRewardConfig, RewardConfig
from contracts.types import Clip
from models.build import build_reward, load_reward
from models.embedded.reward import EmbeddedReward
from models.interfaces import PolicyBatch, RewardBatch

WORDS = ("show the red square", "show the green square")


def clip(seed: int, colour: int, asked: int, frames: int = 16) -> Clip:
    """Noise all along; in the last four frames a square of a colour appears somewhere."""
    rng = np.random.default_rng(seed)
    images = rng.integers(90, 110, (frames, 3, 16, 24, 3), dtype=np.uint8)
    y, x = rng.integers(0, 9), rng.integers(0, 17)
    square = (220, 30, 30) if colour == 0 else (30, 220, 30)
    images[-4:, :, y : y + 8, x : x + 8] = square
    return Clip(images, tuple(range(frames)), WORDS[asked])


def labelled(count: int, seed: int) -> RewardBatch:
    rng = np.random.default_rng(seed)
    colour, asked = rng.integers(0, 2, (2, count))
    clips = [clip(1000 * seed + row, colour[row], asked[row]) for row in range(count)]
    return RewardBatch(clips, colour == asked)


@pytest.fixture(scope="module")
def trained() -> EmbeddedReward:
    model = EmbeddedReward(RewardConfig(), seed=0)
    model.fit_statistics(labelled(16, seed=1))
    optimiser = torch.optim.AdamW(model.module().parameters(), 2e-3, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(0)
    for step in range(100):
        loss = model.loss(labelled(16, seed=10 + step), generator).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def test_judges_unseen_clips_by_their_ending_and_their_instruction(trained):
    batch = labelled(40, seed=2)
    scores = trained.score(batch.clips)
    right = [
        (score.p_yes > 0.5) == truth for score, truth in zip(scores, batch.success, strict=True)
    ]
    assert np.mean(right) >= 0.9
    assert all(score.mass == 1.0 for score in scores)


def test_the_same_frames_under_the_other_instruction_get_the_other_answer(trained):
    red = [clip(seed, 0, asked) for seed in range(5000, 5010) for asked in (0, 1)]
    scores = [score.p_yes for score in trained.score(red)]
    assert np.mean(np.array(scores[::2]) > np.array(scores[1::2])) >= 0.9


def test_a_score_never_depends_on_its_batch_and_order_is_kept():
    model = EmbeddedReward(RewardConfig(), seed=0)
    clips = labelled(16, seed=3).clips
    together = model.score(clips)
    assert len({score.p_yes for score in together}) == 16
    assert model.score(clips[::-1])[::-1] == together
    assert [model.score([one])[0] for one in clips] == together
    assert model.score([]) == []


def test_a_silent_network_is_undecided_and_its_loss_is_log_two():
    model = EmbeddedReward(RewardConfig(), seed=0)
    with torch.no_grad():
        for parameter in model._net.head[-1].parameters():
            parameter.zero_()
    batch = labelled(6, seed=4)
    assert {score.p_yes for score in model.score(batch.clips)} == {0.5}
    loss = model.loss(batch, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(loss.detach().numpy(), math.log(2), rtol=1e-6)


def test_yes_is_the_answer_to_success():
    model = EmbeddedReward(RewardConfig(), seed=0)
    with torch.no_grad():
        model._net.head[-1].weight.zero_()
        model._net.head[-1].bias.copy_(torch.tensor([math.log(3.0), 0.0]))
    one = clip(0, 0, 0)
    assert model.score([one])[0].p_yes == pytest.approx(0.75, abs=1e-6)
    batch = RewardBatch([one, one], np.array([True, False]))
    loss = model.loss(batch, torch.Generator().manual_seed(0)).tolist()
    assert loss == pytest.approx([-math.log(0.75), -math.log(0.25)], rel=1e-5)


def test_only_first_middle_and_last_three_frames_count():
    model = EmbeddedReward(RewardConfig(), seed=0)
    base = clip(7, 0, 0)
    score = model.score([base])[0].p_yes
    seen = {0, 7, 13, 14, 15}
    for frame in range(16):
        frames = base.frames.copy()
        frames[frame] = 255 - frames[frame]
        other = model.score([Clip(frames, base.frame_index, base.instruction)])[0].p_yes
        assert (other != score) == (frame in seen), frame


def test_short_clips_repeat_their_first_frame(trained):
    two = clip(8, 1, 1, frames=2)
    padded = Clip(two.frames[[0, 0, 0, 1]], (0, 0, 0, 1), two.instruction)
    assert trained.score([two]) == trained.score([padded])


def test_a_saved_model_scores_the_same(trained, tmp_path):
    trained.save(tmp_path)
    clips = labelled(3, seed=5).clips
    loaded = load_reward(RewardConfig(), tmp_path, 2)
    assert loaded.score(clips) == trained.score(clips)
    assert loaded.version == 2
    wider = RewardConfig(embedded=EmbeddedRewardConfig(width=40))
    with pytest.raises(ValueError, match="width is 32 in the folder, 40 in the config"):
        load_reward(wider, tmp_path, 2)


def test_default_size_and_refusals():
    model = build_reward(RewardConfig(), 0)
    assert sum(p.numel() for p in model.module().parameters()) < 200_000
    batch = PolicyBatch(
        np.zeros((1, 3, 8, 8, 3), np.uint8),
        np.zeros((1, 7), np.float32),
        np.zeros(1, np.float32),
        [""],
        np.zeros((1, 1, 8), np.float32),
        np.ones(1, np.float32),
    )
    with pytest.raises(ValueError, match="trains on RewardBatch, got PolicyBatch"):
        model.loss(batch, torch.Generator())
