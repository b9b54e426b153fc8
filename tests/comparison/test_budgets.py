"""Final losses over budgets: where one arm passes another, and how much sooner an arm is where it ends."""

import pytest

from dsllm.comparison.budgets import crossing, gain, gain_table, loss_table, tables


class Run:
    def __init__(self, flops: float, loss: float, seed: int = 1, tokens: int = 10):
        self.flops, self.test_loss, self.seed, self.tokens, self.validation = flops, loss, seed, tokens, []
        self.accuracy: dict[str, float] = {}
        self.beyond: dict[str, float] = {}
        self.h90 = self.next_accuracy = None


class Arm:
    def __init__(self, name: str, *runs: Run):
        self.name, self.runs, self.first = name, list(runs), runs[0]

    def values(self, of):
        return [value for value in map(of, self.runs) if value is not None]

    def mean(self, of):
        values = self.values(of)
        return sum(values) / len(values) if values else None

    def spread(self, of):
        return None


def arm(name: str, losses: dict[float, float]) -> dict[float, Arm]:
    return {flops: Arm(name, Run(flops, loss)) for flops, loss in losses.items()}


SCRATCH = arm("scratch", {1e12: 3.0, 2e12: 2.8, 4e12: 2.6})


def test_a_gain_is_what_the_baseline_spends_until_it_ends_as_low():
    found = gain(Arm("grown", Run(1e12, 2.8)), [*SCRATCH.values()], "FLOPs")
    assert found.mean == pytest.approx(1.0) and str(found) == "+100 %"
    between = gain(Arm("grown", Run(1e12, 2.7)), [*SCRATCH.values()], "FLOPs")
    assert between.mean == pytest.approx(2 * 2**0.5 - 1)  # halfway over the logarithm
    worse = gain(Arm("slow", Run(2e12, 2.9)), [*SCRATCH.values()], "FLOPs")
    assert worse.mean == pytest.approx(2**0.5 / 2 - 1)


def test_outside_the_baselines_budgets_there_is_a_bound():
    assert str(gain(Arm("far", Run(2e12, 2.5)), [*SCRATCH.values()], "FLOPs")) == "≥ +100 %"
    assert str(gain(Arm("bad", Run(2e12, 3.1)), [*SCRATCH.values()], "FLOPs")) == "≤ -50 %"


def test_runs_of_one_seed_are_held_against_each_other():
    baseline = [Arm("scratch", Run(1e12, 3.0), Run(1e12, 3.1, 2)), Arm("scratch", Run(4e12, 2.6), Run(4e12, 2.7, 2))]
    found = gain(Arm("grown", Run(2e12, 2.75), Run(2e12, 2.9, 2)), baseline, "FLOPs")
    each = [4 ** ((start - loss) / 0.4) / 2 - 1 for loss, start in ((2.75, 3.0), (2.9, 3.1))]
    assert (found.mean, found.least, found.most) == pytest.approx((sum(each) / 2, min(each), max(each)))
    assert str(found) == "+9 % (0 … +19)"


def test_one_budget_says_nothing_of_gains():
    one = {"scratch": arm("scratch", {1e12: 3.0}), "grown": arm("grown", {1e12: 2.9})}
    assert gain(one["grown"][1e12], [*one["scratch"].values()], "FLOPs") is None and tables(one) == []


def test_without_a_second_budget_of_the_baseline_gains_are_left_out():
    arms = {"scratch": arm("scratch", {1e12: 3.0}), "grown": arm("grown", {1e12: 2.9, 2e12: 2.8})}
    assert [table.title for table in tables(arms)] == ["Test loss by budget"]


def test_of_problems_there_are_chains_by_budget_and_those_beyond_where_they_were_asked():
    arms = {"scratch": arm("scratch", {1e12: 3.0, 2e12: 2.9})}
    early, late = (at.runs[0] for at in arms["scratch"].values())
    early.accuracy, early.h90, late.accuracy, late.h90 = {"1": 0.9}, 1, {"1": 0.9}, 1
    assert "Accuracy at" not in " ".join(table.title for table in tables(arms))
    late.beyond, late.next_accuracy = {"10": 0.1, "9": 0.3}, 0.3
    (found,) = (table for table in tables(arms) if table.title == "Accuracy at 9 steps, beyond training, by budget")
    assert found.rows == [["arm", "1e+12 FLOPs", "2e+12 FLOPs"], ["scratch", "", "0.300"]]


def test_a_crossing_lies_between_the_budgets_where_the_lead_changes():
    budgets = [1e12, 2e12, 4e12]
    assert crossing([3.0, 2.8, 2.6], [2.8, 2.7, 2.7], budgets) == pytest.approx(2e12 * 2**0.5)
    assert crossing([3.0, 2.8, 2.6], [2.8, 2.7, 2.5], budgets) is None
    assert crossing([3.0, 2.8, 2.6], [3.1, 2.9, 2.7], budgets) == 1e12
    assert crossing([3.0, 2.8, 2.6], [3.1, 2.7, 2.7], budgets) > 2e12  # the lead that lasts


def test_the_tables_leave_blank_what_was_not_run_and_compare_what_both_have():
    arms = {"scratch": SCRATCH, "shallow": arm("shallow", {1e12: 2.9, 2e12: 2.85}), "grown": arm("grown", {2e12: 2.7})}
    header, *rows = loss_table(arms)
    assert header == ["arm", "1e+12 FLOPs", "2e+12 FLOPs", "4e+12 FLOPs", "scratch is ahead from"]
    assert rows[1] == ["shallow", "2.9000", "2.8500", "", "1.6e+12 FLOPs"]
    assert rows[2] == ["grown", "", "2.7000", "", "not up to 2e+12"]
    header, *rows = gain_table(arms)
    assert header[:3] == ["arm", "by FLOPs, at 1e+12", "by FLOPs, at 2e+12"]
    assert rows[1][:3] == ["grown", "", "+41 %"]
