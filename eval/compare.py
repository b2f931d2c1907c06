"""Compare any two or more policies, also ones that were not trained here.

    python -m eval compare NAME=FOLDER NAME=FOLDER ... --config configs/gpt2.yaml --output_dir runs/gpt2

The first is the reference. Samples, scores, judges and reports as for a profile, into OUTPUT_DIR/compare/NAMES.
"""

from dataclasses import fields, replace
from pathlib import Path

from eval import judge, report, samples, score
from eval.config import CompareConfig, JudgeConfig, ReportConfig, SamplesConfig, ScoreConfig
from rlhf_trl.config import DataConfig, TaskConfig
from rlhf_trl.errors import UserError
from rlhf_trl.files import lock
from rlhf_trl.provenance import Task


def main(start: TaskConfig, data_config: DataConfig, config: CompareConfig) -> None:
    if len(config.folders) < 2 or len(config.folders) < len(config.policies):
        raise UserError(
            "name two policies or more before the options, each once: compare a=FOLDER b=FOLDER --config FILE"
        )
    config = replace(
        config,
        policies=[f"{name}={folder}" for name, folder in config.folders.items()],
        output_dir=str(Path(config.output_dir) / "compare" / "-".join(config.folders)),
    )
    kinds = {samples: SamplesConfig, score: ScoreConfig, judge: JudgeConfig, report: ReportConfig}
    for module, kind in kinds.items():
        step = module.__name__.rpartition(".")[2]
        own = kind(**{part.name: getattr(config, part.name) for part in fields(kind)})
        data = [data_config] if module in (samples, score) else []
        values = {name: value for part in (*data, own) for name, value in vars(part).items()}
        task = Task.of(step, values, {}, own.reads, start.fresh)
        if task.is_finished():
            print(f"{step}: nothing to do; the result is in {task.folder}")
        else:
            with lock(task.folder):
                module.main(task, *data, own)
