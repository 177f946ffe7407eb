"""Rounds of periodic work that has to come on."""

from portal.kernel.rounds import Rounds
from portal.settings import Settings
from portal.worker.watchdog import STATUS, TICK_S, Watchdog


def test_a_round_without_a_sign_of_life_hangs_and_nothing_else_does() -> None:
    rounds = Rounds()
    rounds.pass_time(1000)
    with rounds.of("looks") as beat, rounds.of("others") as others:
        rounds.pass_time(60)
        beat()
        others()
        rounds.pass_time(60)
        assert rounds.hanging(60) == ""
        others()
        rounds.pass_time(1)
        assert rounds.hanging(60) == "looks"
    rounds.pass_time(1000)
    assert rounds.hanging(60) == ""
    assert rounds.came_round() == {"looks", "others"}


def test_while_the_process_was_stopped_nothing_hung(settings: Settings) -> None:
    told: list[str] = []
    ended: list[int] = []
    rounds = Rounds()
    dog = Watchdog(rounds, settings.model_copy(update={"worker_hang_s": 5}), told.append, end=ended.append)
    with rounds.of("looks"):
        dog.look(3600)
        assert (told, ended) == ([], [])
        for _ in range(4):
            dog.look(TICK_S)
    assert (told, ended) == (["looks"], [STATUS])
