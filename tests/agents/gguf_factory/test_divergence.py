"""The verdict on losses of real runs: the starter base at batch 2, warmup of 4 steps, 64 tokens a row."""

from __future__ import annotations

import random

import pytest

from agents.gguf_factory.divergence import FIRST, PATIENCE, WINDOW, exploded, lowest_mean, ruined, sound

HEALTHY = [  # learning rate 0.001, batch 2
    3.85, 3.02, 3.14, 2.78, 3.58, 3.77, 3.46, 5.11, 3.75, 3.99, 3.73, 4.29, 4.66, 4.74, 5.15, 4.13, 3.04, 3.39,
    4.97, 3.26, 3.51, 4.17, 3.92, 3.79, 4.12, 2.72, 5.20, 4.89, 4.83, 4.03, 4.44, 3.17, 4.90, 2.56, 3.47, 5.34,
    5.36, 3.69, 5.64, 3.40,
]  # fmt: skip
RUINED = [  # learning rate 0.03, batch 2
    3.85, 3.04, 3.03, 3.11, 5.15, 6.33, 5.64, 6.92, 7.44, 7.97, 6.45, 6.56, 8.44, 8.07, 8.51, 7.50, 8.28, 9.08,
    8.09, 8.02, 7.40, 6.94, 6.82, 7.33, 6.56, 4.76, 8.12, 7.44, 7.93, 5.73, 7.59, 6.39, 7.12, 5.72, 5.68, 7.60,
    8.31, 6.34, 7.20, 6.47,
]  # fmt: skip
BURST = [  # learning rate 0.1, batch 2
    3.85, 3.10, 3.69, 13.04, 11.29, 17.02, 8.37, 10.46, 7.57, 7.61, 6.52, 6.76, 7.28, 7.50, 8.19, 6.74, 6.39,
    6.02, 7.02, 6.42, 6.13, 6.43, 6.21, 6.56, 6.44, 4.72, 7.61, 6.70, 7.41, 5.51, 7.71, 6.51, 7.16, 4.48, 5.67,
    7.23, 8.20, 5.70, 7.10, 5.58,
]  # fmt: skip
NOISY = [  # learning rate 0.003, batch 1
    4.69, 3.44, 3.54, 2.22, 3.25, 2.88, 3.36, 2.54, 3.32, 4.35, 1.49, 8.21, 4.54, 3.14, 6.68, 4.42, 4.37, 3.27,
    5.68, 3.46, 4.24, 3.14, 4.88, 3.58, 5.38, 3.81, 5.10, 1.55, 4.07, 5.48, 5.45, 3.38, 1.06, 6.38, 1.41, 4.01,
    7.99, 4.06, 3.28, 3.13, 3.19, 4.86, 4.20, 3.75, 4.18, 3.14, 3.19, 4.42, 4.32, 3.84, 1.53, 4.84, 5.68, 4.20,
    4.26, 6.54, 3.77, 5.89, 4.01, 4.11,
]  # fmt: skip
RUINED_LATER = [  # learning rate 0.03, batch 1
    4.69, 3.44, 3.58, 2.07, 3.67, 3.22, 3.50, 5.86, 7.00, 7.09, 5.12, 8.91, 21.77, 8.78, 12.13, 9.31, 8.07, 7.62,
    10.61, 11.03, 13.00, 9.50, 8.66, 7.34, 8.76, 7.77, 8.46, 7.13, 7.09, 9.50, 8.75, 5.61, 7.61, 8.21, 4.74,
    11.70, 9.89, 8.45, 6.75, 6.60, 7.46, 9.07, 6.51, 7.65, 7.99, 5.55, 5.39, 7.60, 6.52, 7.22, 3.79, 5.99, 8.52,
    6.84, 6.95, 6.11, 5.60, 9.46, 6.10, 4.79,
]  # fmt: skip
SOUND = {"healthy": HEALTHY, "noisy": NOISY}
LOST = {"ruined": (RUINED, 12), "burst": (BURST, 8), "one row": (RUINED_LATER, 16)}


def first_alarm(losses: list[float]) -> int | None:
    return next((step for step in range(1, len(losses) + 1) if exploded(losses[:step])), None)


@pytest.mark.parametrize("losses", SOUND.values(), ids=SOUND.keys())
def test_a_sound_run_raises_no_alarm(losses: list[float]) -> None:
    assert first_alarm(losses) is None


@pytest.mark.parametrize(("losses", "by"), LOST.values(), ids=LOST.keys())
def test_a_run_that_is_lost_from_its_first_steps_is_seen_within_a_few_more(losses: list[float], by: int) -> None:
    assert first_alarm(losses) is not None and first_alarm(losses) <= by
    assert not sound(losses[:by])


def test_ruin_after_many_good_steps_is_seen_by_its_mean_though_no_burst_lasts() -> None:
    plateau = BURST[20:] * 2  # the loss of word frequencies, about 1.7 times that of the base
    alarm = first_alarm([*HEALTHY, *plateau])
    assert alarm is not None and len(HEALTHY) < alarm <= len(HEALTHY) + WINDOW


def test_noise_of_single_rows_over_a_whole_run_raises_no_alarm() -> None:
    for seed in range(20):
        draw = random.Random(seed)
        losses = [draw.choice(NOISY) * (1 - 0.3 * step / 846) for step in range(846)]
        assert not any(exploded(losses[:step]) for step in range(1, 847, 11))


def test_single_odd_rows_raise_no_alarm() -> None:
    losses = list(HEALTHY)
    for at in range(4, len(losses), PATIENCE):
        losses[at] *= 10
    assert not any(exploded(losses[:step]) for step in range(FIRST + PATIENCE, WINDOW))


def test_a_held_out_loss_of_half_as_much_again_as_the_bases_is_ruin() -> None:
    assert ruined(5.2, 3.4) and not ruined(4.3, 3.4) and not ruined(float("nan"), 3.4)


def test_where_almost_nothing_is_left_to_learn_a_multiple_is_no_alarm() -> None:
    learned = [0.05] * 40
    assert not exploded([*learned, *[0.3] * 30]) and exploded([*learned, *[1.2] * 5])


def test_the_lowest_mean_needs_a_whole_window() -> None:
    assert lowest_mean([1.0] * (WINDOW - 1)) == float("inf")
    assert lowest_mean([2.0] * WINDOW + [1.0] * WINDOW + [3.0]) == pytest.approx(1.0)
