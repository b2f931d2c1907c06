"""The report says what the files of the run say: change them, and it changes."""

import itertools
import json

import numpy as np
import pytest

from eval import stats
from eval.report import summarise, verdicts


@pytest.fixture
def files(tmp_path):
    """Made-up results: `better` wins on 40 of 100 prompts against `base`, `same` on as many as it loses."""

    def write(share_better: float):
        gold = {"base": np.zeros(100), "same": np.zeros(100), "better": np.zeros(100)}
        gold["base"][:10] = gold["same"][10:20] = 1
        gold["better"][: round(100 * share_better)] = 1
        for name, values in gold.items():
            rows = [
                {"gold": g, "proxy": 2 * g + 0.01 * i, "log_ratio": 0.5, "completion_tokens": 7, "finished": i % 2 == 0}
                for i, g in enumerate(values)
            ]
            path = tmp_path / f"eval/policies/{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            (tmp_path / name).mkdir(exist_ok=True)
            manifest = {"train": {"seconds": 1.5, "peak_memory_mb": 10, "tokens": 99}}
            (tmp_path / f"{name}/manifest.json").write_text(json.dumps(manifest))
        pairs = [{"scores_chosen": float(i > 25), "scores_rejected": 0.5 * (i != 30)} for i in range(100)]
        (tmp_path / "eval/reward_model.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        evaluation = {"seed": 3, "machine": {"cpu": "x"}, "versions": {}}
        (tmp_path / "eval/manifest.json").write_text(json.dumps(evaluation))
        return summarise(tmp_path, ["base", "same", "better"], seed=0)

    return write


def test_summary_follows_the_files(files):
    summary = files(share_better=0.5)
    better = summary["policies"]["better"]
    assert better["gold_reward"]["mean"] == 0.5
    assert better["vs_sft"]["gold"]["diff"] == pytest.approx(0.4)
    assert better["eos_rate"] == 0.5
    assert better["completion_tokens"]["mean"] == 7
    assert better["kl"] == {"mean": 0.5, "ci": [0.5, 0.5]}
    assert summary["reward_model"]["accuracy"] == 0.74
    assert summary["seed"] == 3
    assert files(share_better=0.2)["policies"]["better"]["gold_reward"]["mean"] == 0.2


def test_claims_follow_the_corrected_tests(files):
    head, *claims = verdicts(files(share_better=0.5)["comparisons"])
    assert head == "Not shown to be worse than any other: BETTER."
    assert claims[0].startswith("No difference in gold reward is shown between SAME and BASE (difference +0.00")
    assert claims[1].startswith("BETTER's gold reward is higher than BASE's (difference +0.40")
    head, *claims = verdicts(files(share_better=0.12)["comparisons"])
    assert head == "Not shown to be worse than any other: BASE, SAME, BETTER."
    assert all(claim.startswith("No difference") for claim in claims)


def test_equal_policies_are_rarely_told_apart(monkeypatch):
    """Four times the same policy, 100 simulated studies of 60 prompts: false claims in at most 5%, plus chance.

    At a true rate of 5%, 100 studies give more than 11 false ones with a probability below 1%.
    """
    monkeypatch.setattr(stats, "RESAMPLES", 499)
    false = 0
    for study in range(100):
        values = np.random.default_rng(study).normal(size=(4, 60))
        p_values = [stats.sign_flip(a - b, study) for a, b in itertools.combinations(values, 2)]
        false += min(stats.holm(p_values)) < 0.05
    assert false <= 11
