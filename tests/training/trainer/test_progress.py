import pytest

from training.trainer.progress import StepTimes


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
