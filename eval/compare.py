"""Compare any two or more policies, also ones that were not trained here.

    python -m eval compare NAME=FOLDER NAME=FOLDER ... --config configs/gpt2/eval.yaml --reward_model FOLDER

The first is the reference. Scores, judges and reports as for a profile, into OUTPUT_DIR/compare/NAMES.
"""

from dataclasses import replace
from pathlib import Path

from eval import judge, report, score
from eval.config import EvalConfig, JudgeConfig
from rlhf_trl.config import DataConfig
from rlhf_trl.errors import UserError


def main(data_config: DataConfig, config: EvalConfig, judge_config: JudgeConfig) -> None:
    if len(config.folders) < 2 or len(config.folders) < len(config.policies):
        raise UserError(
            "name two policies or more before the options, each once: compare a=FOLDER b=FOLDER --config FILE"
        )
    config = replace(
        config,
        policies=[f"{name}={folder}" for name, folder in config.folders.items()],
        output_dir=str(Path(config.output_dir) / "compare" / "-".join(config.folders)),
        reward_model=config.reward_model_folder,
    )
    for command in (score, judge, report):
        command.main(data_config, config, judge_config)
