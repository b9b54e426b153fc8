"""Finished runs side by side: what a record says, what is refused, and the page in a real browser."""

import copy
import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import yaml

from dsllm.comparison.arms import arms_of, of_one_data
from dsllm.comparison.plots import plots_of
from dsllm.comparison.record import Growth, RunRecord
from dsllm.comparison.report import Report, Table, markdown, notes, page, table, write_report
from dsllm.errors import UserError
from dsllm.training.monitor import read_metrics
from tests.launching import python, train

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def second_run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `trained_run`, with another seed."""
    run_dir = tmp_path_factory.mktemp("runs") / "other_seed"
    train(recipe, run_dir, ranks=1, train__ds_config="ds_configs/zero0.json", train__seed=7)
    return run_dir


@pytest.fixture(scope="module")
def record(trained_run: Path) -> RunRecord:
    return RunRecord.read(trained_run)


def changed(record: RunRecord, **updates) -> RunRecord:
    return record.model_copy(update=updates)


def of_another_arm(record: RunRecord, name: str = "other", **updates) -> RunRecord:
    return changed(record, name=name, arm={**record.arm, "model": {"name": name}}, **updates)


def of_problems(record: RunRecord, name: str, h90: int, seed: int = 1) -> RunRecord:
    accuracy = {str(k): 1.0 if k <= h90 else 0.4 for k in range(1, 9)}
    chance = dict.fromkeys(accuracy, 0.2)
    return of_another_arm(record, name, seed=seed, accuracy=accuracy, asked=dict.fromkeys(accuracy, 50), chance=chance)


def test_a_record_says_what_the_run_recorded(record, trained_run):
    metrics = read_metrics(trained_run)
    train_records = [r for r in metrics if r["kind"] == "train"]
    (test,) = [r for r in metrics if r["kind"] == "eval" and r["split"] == "test"]
    assert (record.test_loss, record.bits_per_byte) == (test["loss"], test["bits_per_byte"])
    assert (record.steps, record.tokens, record.flops) == (8, train_records[-1]["tokens"], train_records[-1]["flops"])
    assert record.train_loss == train_records[-1]["loss"]  # of 8 steps the last tenth is the last
    assert record.test_batches == 4 and test["samples"] == 7  # 7 samples, 2 in a batch
    assert (record.model, record.layers, record.heads, record.widths, record.micro_batch) == ("gpt2", "2", 2, "32", 2)
    steady = sorted(r["step_seconds"] for r in train_records[2:])
    assert record.step_ms == pytest.approx(1000 * (steady[2] + steady[3]) / 2)
    assert [point.tokens for point in record.validation] == [0, 4 * 256, 8 * 256]
    assert record.validation[-1].flops == record.flops
    assert record.validation[-1].seconds == pytest.approx(sum(r["step_seconds"] for r in train_records))


def rewritten(run: Path, to: Path, change) -> Path:
    """A copy of a run whose records went through `change`, a list to a list."""
    shutil.copytree(run, to)
    lines = [json.loads(line) for line in (to / "metrics.jsonl").read_text().splitlines()]
    (to / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in change(lines)))
    return to


def test_a_growth_event_is_charged_and_a_step_is_that_of_all_stages(trained_run, tmp_path):
    def grown(records):
        for record in records:
            if record["kind"] == "train":
                step = record["step"]
                record.update(
                    step_seconds=1.0 if step <= 3 else 3.0, flops=step * 10.0 if step <= 3 else step * 30 - 60
                )
        event = {
            "kind": "growth",
            "step": 3,
            "tokens": 3 * 256,
            "operator": "stack",
            "seconds": {"save": 4.0, "grow": 2.0},
        }
        # Step 3 was not recorded any more: what it cost is known of the stage's others.
        return [record for record in records if record.get("step") != 3] + [event]

    record = RunRecord.read(rewritten(trained_run, tmp_path / "grown", grown))
    assert record.step_ms == pytest.approx((3 * 1000 + 5 * 3000) / 8)
    assert record.tokens_per_second == pytest.approx(256 / (18 / 8))
    (event,) = record.growth
    assert (event.flops, event.seconds) == (pytest.approx(30), pytest.approx(3 + 6))
    assert [point.seconds for point in record.validation] == pytest.approx([0, 3 + 6 + 3, 3 + 6 + 5 * 3])


def test_a_record_comes_back_from_its_file(record, tmp_path):
    record.write(tmp_path / "a.json")
    assert RunRecord.read(tmp_path / "a.json") == record


def test_runs_of_one_configuration_are_an_arm_with_mean_and_deviation(record, second_run):
    (arm,) = arms_of([record, RunRecord.read(second_run)])
    losses = [run.test_loss for run in arm.runs]
    assert len(losses) == 2 and losses[0] != losses[1]
    assert arm.mean(lambda run: run.test_loss) == pytest.approx(sum(losses) / 2)
    assert arm.spread(lambda run: run.test_loss) == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
    cell = dict(table([arm]))["test loss, nats per target"]
    assert re.fullmatch(r"\d\.\d{4} ± \d\.\d{4}", cell)


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ({"data": "0" * 64}, "trained and scored on other data"),
        ({"tokenizer": "0" * 64, "tokenizer_name": "gpt2"}, r"another tokenizer \(bytes and gpt2\)"),
        ({"objective": "labels of problems"}, r"another objective \(next token and labels of problems\)"),
        ({"context": 64}, r"samples of another length \(32 and 64\)"),
        ({"tokens": 12345}, r"other tokens scored \(224 and 12,345\)"),
        ({"validation_tokens": 7}, r"other validation samples \(288 and 7\)"),
    ],
)
def test_losses_that_do_not_belong_into_one_column_are_refused_by_name(record, update, words):
    other = of_another_arm(record, scored=record.scored.model_copy(update=update))
    with pytest.raises(UserError, match=words) as refused:
        arms_of([record, other])
    assert record.name in str(refused.value) and "other" in str(refused.value)


def with_data(record: RunRecord, name: str, seed: int, data: str) -> RunRecord:
    return of_another_arm(record, name, seed=seed).of_data(data)


BY_SEED = [("a", 1, "x"), ("a", 2, "y"), ("b", 1, "x"), ("b", 2, "y")]


def test_data_that_go_by_the_seed_are_one_if_that_is_said(record):
    runs = [with_data(record, *run) for run in BY_SEED]
    assert [(arm.name, len(arm.runs)) for arm in arms_of(of_one_data(runs))] == [("a", 2), ("b", 2)]
    with pytest.raises(UserError, match=r"other data \(x and y\).*--data_by_seed"):
        arms_of(runs)


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([("a", 1, "x"), ("b", 2, "y")], "a and b: no seed in common"),
        ([*BY_SEED[:3], ("b", 2, "z")], r"a and b: other data with the same seed, 2 \(y and z\); prepare"),
    ],
)
def test_data_that_go_by_the_seed_must_be_alike_for_all_arms(runs, words, record):
    with pytest.raises(UserError, match=words):
        of_one_data([with_data(record, *run) for run in runs])


@pytest.mark.parametrize("update", [{"tokenizer": "0" * 64}, {"objective": "labels of problems"}, {"tokens": 12345}])
def test_every_seed_is_looked_at_not_the_first_alone(update, record):
    runs = [with_data(record, *run) for run in BY_SEED]
    for other in (1, 3):  # the second seed of both
        runs[other] = changed(runs[other], scored=runs[other].scored.model_copy(update=update))
    with pytest.raises(UserError, match="a and a: "):
        arms_of(of_one_data(runs))


def test_the_same_run_twice_is_refused(record):
    with pytest.raises(UserError, match="one_rank, one_rank: one configuration with seed 1337, more than once"):
        arms_of([record, record])


def test_the_command_writes_page_markdown_figures_and_pictures(trained_run, second_run, tmp_path):
    out = tmp_path / "report"
    said = python("launch/compare.py", trained_run, second_run, "--out", out, "--records", tmp_path / "kept")
    assert "ms per token decoded" in said and "±" in said and str(out / "report.html") in said
    results = json.loads((out / "results.json").read_text())
    (runs,) = results.values()
    assert [run["seed"] for run in runs] == [7, 1337]
    assert runs[0]["decode_ms"] > 0 and runs[1]["decode_ms"] is None and runs[0]["inference_on"]
    assert (out / "loss_by_flops.png").read_bytes().startswith(b"\x89PNG")
    text = (out / "report.md").read_text()
    assert "| arm | o" in text and "![" in text and "one standard deviation over seeds" in text
    content = (out / "report.html").read_text()
    assert "<img" in content and not re.search(r'(src|href)="(?!data:)', content) and "url(" not in content

    kept = sorted((tmp_path / "kept").iterdir())
    again = python("launch/compare.py", *kept, "--out", tmp_path / "again", "--no_inference")
    assert json.loads((tmp_path / "again" / "results.json").read_text()).keys() == results.keys()
    assert "One seed only" not in again


def test_a_single_run_stands_alone_and_says_so(record):
    arms = arms_of([record])
    text = markdown(Report("One", arms, {}))
    assert "One seed only, so no spread: one_rank." in text and "±" not in text


def test_a_record_of_before_a_key_came_is_one_of_its_default(record, tmp_path):
    older = copy.deepcopy(record.arm)
    del older["train"]["beta2"], older["data"]["mask_documents"], older["model"]["positions"]
    changed(record, arm=older).write(tmp_path / "older.json")
    assert RunRecord.read(tmp_path / "older.json").key == record.key
    unknown = {**older, "model": {"name": "of a module that is not here"}}
    changed(record, arm=unknown).write(tmp_path / "unknown.json")
    assert RunRecord.read(tmp_path / "unknown.json").arm == unknown


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
    assert "dotted: growth events" in plots["loss_by_tokens"][0] and "divergence_1" in plots


@pytest.mark.slow
def test_models_that_merge_tokens_are_shown_by_phase_beside_those_that_do_not(recipe, trained_run, tmp_path):
    merging = tmp_path / "merging.yaml"
    values = yaml.safe_load(recipe.read_text())
    model = {"name": "conv_attention", "n_head": 2, "n_embd": 16, "context": 32, "strides": [4], "widths": [16, 32]}
    values["model"] = {**model, "encoder": [0], "middle": 1, "decoder": [0]}
    merging.write_text(yaml.safe_dump(values))
    train(merging, tmp_path / "merging", train__ds_config="ds_configs/zero0.json")
    python("launch/compare.py", trained_run, tmp_path / "merging", "--out", tmp_path / "report")
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    for runs in results.values():
        losses = runs[0]["phase_losses"]
        assert len(losses) == 4 and sum(losses) / 4 == pytest.approx(runs[0]["test_loss"], rel=0.05)
    assert (tmp_path / "report" / "loss_by_phase.png").exists()


def test_names_are_shown_as_text_not_as_markup(record):
    arms = arms_of([of_another_arm(record, "<script>|")])
    shown = page(Report("x<y", arms, {}))
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "x&lt;y" in shown
    assert "\\|" in markdown(Report("x", arms, {}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "config.yaml").unlink(), "no run, config.yaml is not in it"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "holds no complete checkpoint"),
        (lambda run: _drop(run, "test"), "not finished, there is no evaluation on test at step 8"),
    ],
)
def test_what_is_no_finished_run_is_refused_in_words(spoil, words, trained_run, tmp_path):
    run = tmp_path / "spoilt"
    shutil.copytree(trained_run, run)
    spoil(run)
    said = python("launch/compare.py", trained_run, run, "--out", tmp_path / "report", expect=2)
    assert f"error: {run}: {words}" in said and "Traceback" not in said
    assert not (tmp_path / "report").exists()


def _drop(run: Path, split: str) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line).get("split") != split))


@pytest.mark.parametrize(
    ("names", "arm"),
    [
        (["gpt2_seed1", "gpt2_seed2"], "gpt2"),
        (["gpt2_11", "gpt2_12"], "gpt2"),
        (["runs1", "runs2"], "runs"),
        (["bias-s1", "bias-s2"], "bias"),
        (["a", "b"], "a"),
        (["seed1", "seed2"], "around"),
        (["1"], "around"),
        (["only_3"], "only_3"),
    ],
)
def test_an_arm_is_called_what_its_runs_have_in_common(names, arm, record):
    runs = [changed(record, name=name, group="around", seed=9 - i) for i, name in enumerate(names)]
    assert arms_of(runs)[0].name == arm


def test_runs_in_another_precision_or_on_other_ranks_are_another_arm_and_saving_makes_none(record):
    assert record.arm["precision"] == "fp32" and record.arm["ranks"] == 1
    assert not {"checkpoint_every", "seed"} & set(record.arm["train"])
    assert record.arm["data"]["path"] == record.scored.data


def test_a_run_that_diverged_is_refused_and_a_loss_that_is_no_number_is_left_blank(trained_run, tmp_path):
    def without(kind, split=None):
        def null(records):
            for record in records:
                if record["kind"] == kind and record.get("split") == split:
                    record["loss"] = None
            return records

        return rewritten(trained_run, tmp_path / kind, null)

    record = RunRecord.read(without("train"))
    assert record.train_loss is None and dict(table(arms_of([record])))["training loss at the end"] == ""
    with pytest.raises(UserError, match="its test loss is no number, the run has diverged"):
        RunRecord.read(without("eval", "test"))


def test_records_of_several_folders_with_one_name_are_all_kept(trained_run, second_run, tmp_path):
    for arm, run in (("a", trained_run), ("b", second_run)):
        shutil.copytree(run, tmp_path / arm / "seed1")
    runs = [tmp_path / arm / "seed1" for arm in "ab"]
    python("launch/compare.py", *runs, "--out", tmp_path / "out", "--records", tmp_path / "kept", "--no_inference")
    assert sorted(file.name for file in (tmp_path / "kept").iterdir()) == ["a_seed1.json", "b_seed1.json"]


def test_a_file_that_is_no_record_is_named(trained_run, tmp_path):
    (tmp_path / "a.json").write_text('{"name": 3}')
    said = python("launch/compare.py", tmp_path / "a.json", "--out", tmp_path / "report", expect=2)
    assert "a.json: no record of a run (name:" in said and "Traceback" not in said


PROBE = """<!doctype html><body><script>
const widths = [1280, 390], found = {};
let left = widths.length;
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.src = "report.html";
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    const outside = [...page.querySelectorAll("h1, h2, p, li, img, figcaption, .scroll")].filter(
      (part) => part.getBoundingClientRect().right > width + 0.5 || part.getBoundingClientRect().left < 0);
    found[width] = {scrolls: root.scrollWidth > root.clientWidth, outside: outside.length,
      broken: [...page.images].filter((image) => !image.complete || !image.naturalWidth).length,
      images: page.images.length};
    if (!--left) document.title = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_nothing_is_cut_off_on_a_screen_or_a_telephone_and_nothing_is_fetched(record, tmp_path):
    runs = [of_problems(record, "a model with a rather long name of its own", 5), of_problems(record, "b", 3)]
    arms = arms_of(runs)
    title = "A comparison whose title is long enough to be broken on a telephone"
    wide = Table("By budget", [["arm", *map(str, range(20))], ["a", *["0.1234 ± 0.0123"] * 20]], "A note. " * 30)
    write_report(tmp_path, Report(title, arms, plots_of(arms), [wide]))
    (tmp_path / "probe.html").write_text(PROBE)
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code="-", size="-"):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'user'}"]
    url = f"http://127.0.0.1:{server.server_port}/probe.html"
    command = [CHROMIUM, *quiet, "--window-size=1400,1000", "--timeout=20000", "--dump-dom", url]
    for _ in range(3):  # on a busy machine it may not wait until both widths were looked at
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        if title := re.search(r"<title>(.*)</title>", dom):
            break
    server.shutdown()
    found = json.loads(title[1].replace("&quot;", '"'))
    for width in ("1280", "390"):
        seen = {"scrolls": False, "outside": 0, "broken": 0, "images": len(plots_of(arms))}
        assert found[width] == seen, width
    assert {path for path in asked if path != "/favicon.ico"} == {"/probe.html", "/report.html"}
