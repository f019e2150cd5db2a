"""Laws of fathom/engine/draft.py: how far is guessed follows steps' seconds and what comes true."""

import random
from types import SimpleNamespace

import pytest

from fathom.engine.draft import SETTLED, Depth

PLAIN = 0.001
"""Seconds of a step without drafts."""


class Served:
    """Requests that are answered for ever, by a machine whose every step costs what we say."""

    def __init__(self, chance, cost, late=0):
        self.depth = Depth(3)
        self.chance, self.cost, self.late = chance, cost, late
        self.random, self.seconds, self.tokens = random.Random(0), 0.0, 0
        self.lives = []

    def steps(self, count, requests=1):
        """Take steps with so many requests; the depths that were chosen."""
        while len(self.lives) < requests:
            self.lives.append(SimpleNamespace(tried=[0] * 3, came=[0] * 3))
        lives, found = self.lives[:requests], []
        for step in range(count):
            depth = self.depth.choose(lives)
            usual = not (self.late and step % self.late == 0)
            seconds = PLAIN * (self.cost[depth] if usual or not depth else 3 * self.cost[depth])
            tokens = 0
            for live in lives:
                came = 0
                while came < depth and self.random.random() < self.chance:
                    came += 1
                self.depth.count(live, depth, came)
                tokens += came + 1
            if self.depth.watching:
                self.depth.learn(requests, depth, tokens, seconds, steady=True, usual=usual)
            self.seconds, self.tokens = self.seconds + seconds, self.tokens + tokens
            found.append(depth)
        return found


def settle(served, requests=1):
    """Let as many steps pass as it takes before the head is tried."""
    return served.steps(int(SETTLED / PLAIN) + 1, requests)


@pytest.mark.parametrize("requests", [1, 4])
def test_where_drafts_come_true_and_cost_little_it_is_drafted_to_the_full(requests):
    served = Served(0.95, (1, 1.2, 1.3, 1.4))
    settle(served, requests)
    served.steps(100, requests)
    assert set(served.steps(2000, requests)) == {3}


def test_where_drafts_come_true_and_deep_ones_cost_too_much_it_is_drafted_one_ahead():
    served = Served(0.9, (1, 1.2, 2.5, 4))
    settle(served)
    served.steps(100)
    found = served.steps(2000)
    assert found.count(1) > 0.95 * len(found)


@pytest.mark.parametrize("chance", [0.0, 0.5])
def test_where_nothing_is_gained_trials_take_a_hundredth_of_the_time_at_most(chance):
    served = Served(chance, (1, 3, 4, 5))
    settle(served)
    served.steps(3000)
    before, tokens = served.seconds, served.tokens
    assert 0 < sum(depth > 0 for depth in served.steps(30_000)) < 300
    assert served.seconds - before < 1.01 * PLAIN * (served.tokens - tokens)


def test_what_catching_up_costs_counts_though_it_is_no_usual_step():
    served = Served(0.9, (1, 1.6, 1.9, 2.2), late=2)
    settle(served)
    served.steps(1000)
    assert served.steps(1000).count(0) > 950
    without = Served(0.9, (1, 1.6, 1.9, 2.2))
    settle(without)
    without.steps(1000)
    assert without.steps(1000).count(0) < 50


def test_when_drafts_begin_to_come_true_the_head_is_found_again():
    served = Served(0.0, (1, 1.2, 1.3, 1.4))
    settle(served)
    served.steps(3000)
    served.chance = 0.95
    served.steps(20_000)
    assert set(served.steps(500)) == {3}


def test_with_a_number_of_requests_that_is_seldom_nothing_is_tried():
    served = Served(0.95, (1, 1.2, 1.3, 1.4))
    settle(served, 4)
    served.steps(200, 4)
    assert set(served.steps(20, 1)) == {0}
    assert set(served.steps(20, 4)) == {3}


def test_a_depth_that_is_fixed_is_never_chosen_otherwise():
    depth = Depth(2, adapt=False)
    lives = [SimpleNamespace(tried=[0] * 2, came=[0] * 2)]
    assert {depth.choose(lives) for _ in range(100)} == {2}
    assert depth.choose([]) == 0
