"""Results that do not belong together are not read together, and none is made twice at once."""

import shutil

import pytest

from rlhf_trl.errors import UserError
from rlhf_trl.files import lock
from rlhf_trl.provenance import check_belongs
from tests.made_up_results import Results, moved


@pytest.fixture
def results(tmp_path, world, monkeypatch):
    return Results(tmp_path, world, monkeypatch)


# Of each two results that can disagree: the one that is made anew, the one that is then read, what it was made from
MIXES = [
    ("samples", "report", "scores was made from another samples"),
    ("samples", "report", "judge was made from another samples"),
    ("score", "report", None),
    ("reward", "score", "ppo was made from another reward_model"),
    ("sft", "ppo", "reward was made from another model"),
    ("reward", "samples", "ppo was made from another reward_model"),
]


@pytest.mark.parametrize(("anew", "reader", "complaint"), MIXES)
def test_results_that_do_not_belong_together_are_not_read(anew, reader, complaint, results):
    """By hand, where no graph makes them again first."""
    graph = results.graph()
    results.make(graph.command(anew, "--fresh"))
    if complaint and complaint.startswith("judge"):
        results.make(graph.command("score"))
    task = graph.task(reader)
    if complaint is None:
        assert task.is_finished() is False  # the report is made again, of what belongs together
        return
    with pytest.raises(UserError, match=f"{complaint}.* do not belong together"):
        task.is_finished()


def test_inputs_that_were_made_of_different_things_are_not_read_together(results):
    """Where no result was made anew, but another thing is asked for."""
    other = results.folder / "others.yaml"
    other.write_text("a: [{prompt: c}]")
    runs = results.folder / "runs/p"
    for step, option, role in (
        ("score", f"score=--probes {other}", "probes"),
        ("report", f"report=--policies sft ppo={runs}/dpo grpo dpo", "ppo"),
        ("report", f"report=--reward_model {results.folder}/base", "reward_model"),
    ):
        task = results.graph(option).task(step, fresh=True)
        with pytest.raises(UserError, match=f"are of another {role} each, so they do not belong together"):
            task.is_finished()


def test_what_is_fetched_while_a_step_runs_is_recorded(results, monkeypatch):
    results.write_profile({"dataset": "some/pairs"})
    task = results.graph().task("data")
    assert task.made_of["dataset"]["sha256"] is None
    monkeypatch.setattr("rlhf_trl.provenance.HF_HUB_CACHE", results.folder)
    (results.folder / "datasets--some--pairs/refs").mkdir(parents=True)
    (results.folder / "datasets--some--pairs/refs/main").write_text("commit")
    assert task.manifest("content")["made_of"]["dataset"]["sha256"] == "commit"


def test_two_processes_do_not_make_the_same_result(results, run):
    options = ["--config", results.folder / "p.yaml", "--output_dir", results.folder / "runs/p", "--fresh"]
    with lock(results.folder / "runs/p/data"):
        code, _, error = run("data", *options)
    assert code == 2 and "another process makes" in error.splitlines()[-1]


def test_folders_that_moved_together_still_belong_together(results):
    moved(results)
    check_belongs(results.folder / "runs/p/report")
    shutil.copytree(results.folder / "runs", results.folder / "new")
    results.make(results.graph().command("samples", "--fresh"))
    check_belongs(results.folder / "new/p/report")  # which stands on the copy beside it
    with pytest.raises(UserError, match="samples"):
        check_belongs(results.folder / "runs/p/report")
