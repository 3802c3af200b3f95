import pytest

from training.recipe import Recipe, Stage
from training.trainer.progress import StepTimes, TimeLeft


def test_a_run_is_shown_in_tensorboard(trained_run):
    assert list((trained_run.folder / "tensorboard").glob("events.out.*"))


def test_time_spent_waiting_for_data_is_a_share_of_the_epoch():
    now_s = 0.0

    def load():
        nonlocal now_s
        for _ in range(2):
            now_s += 3
            yield "batch"

    times = StepTimes(clock=lambda: now_s)
    for _ in times.measure_wait(load()):
        now_s += 1
    assert times.update_seconds() == 8
    assert times.data_wait_share == pytest.approx(6 / 8)
    times.begin_epoch()
    now_s += 2
    assert (times.update_seconds(), times.data_wait_share) == (2, 0)


def test_seconds_of_an_interrupted_epoch_are_added():
    now_s = 0.0
    times = StepTimes(clock=lambda: now_s)
    times.seconds, times.waiting_s = 10.0, 4.0
    now_s += 6
    assert (times.update_seconds(), times.data_wait_share) == (16, 0.25)


def test_time_that_is_skipped_is_not_of_the_epoch():
    now_s = 0.0
    times = StepTimes(clock=lambda: now_s)
    now_s += 100
    times.skip()
    now_s += 2
    assert times.update_seconds() == 2


def test_remaining_time_knows_that_later_stages_are_slower():
    now_s = 0.0
    recipe = Recipe(
        stages=(
            Stage(photo_px=128, epochs=1, trains="heads"),
            Stage(photo_px=128, epochs=1),
            Stage(photo_px=256, epochs=2),
        )
    )
    left = TimeLeft(recipe, steps_per_epoch=10, clock=lambda: now_s)
    for step in range(5):
        now_s += 1
        left.end_step(step)
    # 5 more at 1 s, 10 at three times the work, 20 at twelve times.
    assert left.estimate(5) == pytest.approx(5 + 10 * 3 + 20 * 12)
    for step in range(5, 10):
        now_s += 1
        left.end_step(step)
    now_s += 7
    left.end_epoch()
    for step in range(10, 15):
        now_s += 4  # slower than its work says
        left.end_step(step)
    per_work = (10 + 20) / (10 * 1 + 5 * 3)
    assert left.estimate(15) == pytest.approx(5 * 4 + 20 * 12 * per_work + 3 * 7)
