"""The table, its notes and pictures."""

from dsllm.comparison.arms import arms_of
from dsllm.comparison.plots import plots_of
from dsllm.comparison.record import Growth
from dsllm.comparison.report import Report, notes, table
from dsllm.comparison.writing import markdown
from tests.comparison.records import changed, of_another_arm, of_problems


def test_a_single_run_stands_alone_and_says_so(record):
    arms = arms_of([record])
    text = markdown(Report("One", arms, {}))
    assert "One seed only, so no spread: one_rank." in text and "±" not in text


def test_runs_of_several_machines_are_said_not_to_be_timed_alike(record):
    (here,) = record.trained_on
    assert f"Trained on {here}." in notes(arms_of([record]))
    elsewhere = changed(record, trained_on=sorted([here, "another machine"]))  # resumed on a second one
    (said,) = [note for note in notes(arms_of([elsewhere])) if "Trained on" in note]
    assert said.count(here) == said.count("another machine") == 1 and "not one machine" in said
    unknown = of_another_arm(record, trained_on=[])
    assert any("a machine that was not recorded" in note for note in notes(arms_of([record, unknown])))


def test_problems_are_told_by_h90_and_accuracy_in_place_of_bits(record):
    runs = [of_problems(record, "deep", 6), of_problems(record, "deep", 8, seed=2), of_problems(record, "shallow", 3)]
    arms = arms_of(runs)
    rows = {name: cells for name, *cells in table(arms)}
    assert rows["H90, steps"] == ["7.0 ± 1.4", "3.0"] and "bits per byte" not in rows
    assert {"accuracy_by_chain", "accuracy_by_loss"} <= set(plots_of(arms))


def test_longer_chains_than_those_trained_on_stand_apart(record):
    runs = [
        changed(of_problems(record, "deep", 8, seed), beyond={"9": share, "10": 0.5}, asked_beyond={"9": 50, "10": 50})
        for seed, share in ((1, 0.9), (2, 0.7))
    ]
    arms = arms_of([*runs, of_problems(record, "shallow", 3)])
    rows = {name: cells for name, *cells in table(arms)}
    assert rows["mean accuracy, 9 to 10 steps, beyond training"] == ["0.650 ± 0.071", ""]
    assert rows["accuracy at 9 steps, beyond training"] == ["0.800 ± 0.141", ""]
    assert "Not asked with all seeds: shallow (positions that end, or older runs)." in notes(arms)
    assert rows["H90, steps"] == ["8.0 ± 0.0", "3.0"] and rows["mean accuracy"][0] == "1.000 ± 0.000"
    assert any("longer than in training" in note for note in notes(arms))
    assert "longer than any in training" in plots_of(arms)["accuracy_by_chain"][0]
    assert "longer than any in training" not in plots_of(arms[1:])["accuracy_by_chain"][0]


def test_growth_events_and_distances_have_their_place(record):
    grown = [Growth(tokens=1024, flops=record.flops / 2, seconds=0.1, operator="interpose")]
    arms = arms_of([record, of_another_arm(record, "grown", growth=grown, divergence={"0-1": 0.3, "2-3": 1.2})])
    plots = plots_of(arms)
    assert "triangles: growth events" in plots["loss_by_tokens"][0] and "divergence_1" in plots
