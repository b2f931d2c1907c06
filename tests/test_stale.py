"""What happens to a finished step that is asked for again: nothing, a refusal, or it is made anew.

The results are made up, but for their manifests, by which alone the graph decides.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys

import pytest

from rlhf_trl.provenance import MANIFEST, read_manifest
from rlhf_trl.steps import STEPS
from tests.conftest import ROOT
from tests.made_up_results import RUNS, Results, moved


@pytest.fixture
def results(tmp_path, world, monkeypatch):
    return Results(tmp_path, world, monkeypatch)


def copied(results, name):
    """The profile with another path to the same content."""
    shutil.copytree(results.folder / name, results.folder / "copy")
    results.write_profile({{"base": "base_model", "data": "dataset"}[name]: str(results.folder / "copy")})


def touched(results):
    for path in results.folder.rglob("*"):
        os.utime(path)


def rewritten(results, name, old, new):
    (path,) = results.folder.glob(name)
    path.write_bytes(path.read_bytes().replace(old, new))


def other_pairs(results):
    (results.folder / "data/more").mkdir()
    (results.folder / "data/more/train.jsonl").write_text(json.dumps({"prompt": "Hi", "chosen": "a", "rejected": "b"}))


def other_template(results):
    rewritten(results, "template.txt", b"{{ first }}", b" {{ first }}")


def other_tokenizer(results):
    rewritten(results, "base/tokenizer_config.json", b"{", b" {")


CHANGES = {
    # what changes: (a preparation, options on the command line), the steps that it is refused for, what is named
    "ARGS": ((None, ["ppo=--kl_strength 0.2"]), ["ppo"], r"kl_strength: 0\.1, and now it is 0\.2"),
    "ARGS of a judge": ((None, ["judge=--judge_model n"]), ["judge"], "judge_model: m, and now it is n"),
    "ARGS of the evaluation": ((None, ["eval=--prompts 9"]), ["samples"], "prompts: 8, and now it is 9"),
    "ARGS of all": ((None, ["all=--max_rows 9"]), ["data", *RUNS, "eval-reward", "samples", "score"], "max_rows: 50"),
    "SEED": (
        (None, ["all=--seed 1"]),
        [*RUNS, "eval-reward", "samples", "score", "report"],
        "seed: 0, and now it is 1",
    ),
    "MODEL": (
        (None, ["all=--base_model {folder}/runs"]),
        ["data", "sft"],
        "{folder}/base, and now it is {folder}/runs",
    ),
    "DATA": (
        (None, ["all=--dataset {folder}/base"]),
        ["data", *RUNS, "eval-reward", "samples", "score"],
        "{folder}/data, and now it is {folder}/base",
    ),
    "edited profile": ((lambda r: r.write_profile({"sft": {"max_steps": 4}}), []), ["sft"], "max_steps: 3, and now"),
    "edited shared key": ((lambda r: r.write_profile({"kl_strength": 0.3}), []), ["ppo", "grpo", "dpo"], "kl_strength"),
    "edited data": (
        (other_pairs, []),
        ["data", *RUNS, "eval-reward", "samples", "score"],
        "dataset {folder}/data, which has changed since",
    ),
    "edited tokenizer": ((other_tokenizer, []), ["data", "sft"], "{folder}/base, which has changed since"),
    "edited request of the judge": ((other_template, []), ["judge"], "judge_template {folder}/template.txt, which has"),
    "harmless options": (
        (None, [*(f"{run}=--logging_steps 1 --save_steps 7 --report_to none" for run in RUNS), "judge=--retries 1"]),
        [],
        None,
    ),
    "harmless options in the profile": ((lambda r: r.write_profile({"save_steps": 0.1}), []), [], None),
    "files touched": ((touched, []), [], None),
    "data copied": ((lambda r: copied(r, "data"), []), [], None),
    "model copied": ((lambda r: copied(r, "base"), []), [], None),
    "results copied": ((moved, []), [], None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_finished_step_asked_for_otherwise_is_refused_by_name(change, results):
    (prepare, options), refused, message = CHANGES[change]
    if prepare:
        prepare(results)
    graph = results.graph(*(option.format(folder=results.folder) for option in options))
    for step in STEPS:
        if step == "demo-data":
            continue
        outcome, needed = results.ask(step, graph=graph), graph.order([step])
        if set(refused).isdisjoint(needed):
            assert outcome == [], step
            continue
        assert isinstance(outcome, str) and "FRESH=1" in outcome, step
        assert outcome.partition(":")[0] == next(name for name in needed if name in refused)
        assert re.search(message.format(folder=re.escape(str(results.folder))), outcome) and not results.ran


def test_fresh_makes_the_step_that_is_named_and_the_next_command_what_stands_on_it(results):
    before = {step: read_manifest(results.graph().task(step).folder)["sha256"] for step in RUNS}
    options = ["reward=--learning_rate 0.5"]
    assert results.ask("reward", *options, fresh=True) == ["reward"]
    assert results.ask("sft", *options) == results.ask("reward", *options) == []
    assert results.ask("ppo", *options) == ["ppo"]
    # a judge that has been paid says what it would ask, and is not asked on the way
    outcome = results.ask("report", *options)
    assert "'make judge' asks anew" in outcome
    assert results.ran == ["grpo", "dpo", "eval-reward", "samples", "score", "dry run"]
    assert results.ask("judge", *options) == ["judge"]
    assert results.ask("report", *options) == ["report"]
    assert results.ask("report", *options) == []
    after = {step: read_manifest(results.graph().task(step).folder)["sha256"] for step in RUNS}
    assert [step for step in RUNS if after[step] != before[step]] == ["reward", "ppo", "grpo", "dpo"]


def test_fresh_makes_all_anew_where_all_is_named(results):
    assert results.ask("all", "all=--seed 1", fresh=True) == [step for step in STEPS if step != "demo-data"]
    assert results.ask("all", "all=--seed 1") == []


def test_a_parent_with_the_same_content_makes_nothing_anew(results):
    """As a training repeated gives the same weights."""
    number = results.number
    manifest = read_manifest(results.folder / "runs/p/sft")
    results.number = int(manifest["sha256"].split()[1]) - 1
    assert results.ask("sft", fresh=True) == ["sft"]
    results.number = number
    assert results.ask("report") == []


def test_new_samples_take_scores_verdicts_and_report_with_them(results):
    assert results.ask("samples", fresh=True) == ["samples"]
    assert results.ask("score") == ["score"]
    assert "asks anew" in results.ask("report")
    assert results.ask("judge report") == ["judge", "report"]


@pytest.mark.parametrize("name", ["base", "scores", "dataset"])
def test_a_policy_has_a_name_of_its_own(name, results):
    assert f"a policy cannot be called {name}" in results.ask("report", f"eval=--policies sft {name}=elsewhere")


def test_an_unfinished_judge_goes_on_when_it_is_named(results):
    path = results.folder / "runs/p/judge" / MANIFEST
    path.write_text(json.dumps(read_manifest(path.parent) | {"unfinished": True}))
    assert results.ask("report") == []
    assert results.ask("judge") == ["judge"]


def test_a_policy_more_or_less_is_sampled_too(results):
    results.write_profile({"eval": {"policies": ["sft", "ppo"]}})
    assert results.ask("samples") == ["samples"]
    results.write_profile({})
    assert results.ask("samples") == ["samples"]


def test_a_parent_of_another_name_is_another_setting_wherever_it_lies(results):
    for options in ("sft=--model_name_or_path {runs}/reward", "ppo=--reward_model_path {runs}/sft"):
        option = options.format(runs=results.folder / "runs/p")
        assert "and now it is" in results.ask(option.partition("=")[0], option)


def test_a_stopped_run_is_gone_on_with_beside_a_finished_one(results):
    """As one is that was begun with FRESH=1."""
    options = ["ppo=--kl_strength 0.2"]
    task = results.graph(*options).task("ppo")
    staging = task.folder.with_name("ppo.partial")
    staging.mkdir()
    (staging / "started.json").write_text(json.dumps({"options": task.options, "made_of": task.made_of}))
    assert results.ask("ppo", *options) == ["ppo"]
    assert "kl_strength: 0.2, and now it is 0.1" in results.ask("ppo")


@pytest.mark.parametrize("step", [step for step in STEPS if step != "demo-data"])
def test_a_result_of_an_older_layout_is_refused_in_one_line(step, results):
    path = results.graph().task(step).folder / MANIFEST
    path.write_text(json.dumps({"recipe": step, "settings": {}, "parents": {}}))
    outcome = results.ask(step)
    assert "was made by an older version of rlhf-trl" in outcome and "FRESH=1" in outcome
    assert results.ask(step, fresh=True) == [step]


def test_the_answer_comes_within_two_seconds(results):
    """From the shell: nothing to do, and a refusal."""
    command = [sys.executable, "-m", "rlhf_trl.pipeline", "report", "--profile", str(results.folder / "p.yaml")]
    command += ["--runs", str(results.folder / "runs")]
    for options, code, said in (
        ([], 0, "nothing to do; the result is in "),
        (["--options", "all=--seed 1"], 2, "error: sft: .* seed: 0, and now it is 1"),
    ):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (done.returncode, len((done.stdout + done.stderr).splitlines())) == (code, 1), done.stderr
        assert re.match(said, done.stdout + done.stderr)
        # of the processor, which other tests share
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
