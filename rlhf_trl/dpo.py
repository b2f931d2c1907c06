"""TRL's DPOTrainer, with its cache of log-probabilities under the reference corrected."""

import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from trl import DPOTrainer

from rlhf_trl.batching import length_grouped
from rlhf_trl.files import weights_hash


class CorrectedDPOTrainer(length_grouped(DPOTrainer)):
    """DPOTrainer on ids, whose reference is computed as the policy is, and is never an older one."""

    def _prepare_dataset(self, dataset: Dataset, *_) -> Dataset:
        """TRL would tokenize text of its own; these rows have `prompt_ids`, `chosen_ids` and `rejected_ids`."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """TRL's key to the cache leaves `ld_alpha` out and, under ZeRO-3, the weights, which are empty there."""
        source = weights_hash(self.model.config._name_or_path)
        dataset._fingerprint = Hasher.hash(
            (dataset._fingerprint, self.ld_alpha, source, self.accelerator.mixed_precision)
        )
        with torch.random.fork_rng(devices=[]):  # training must not depend on what was in the cache
            return super()._precompute_ref_logps(dataset, name, batch_size)

    def compute_ref_log_probs(self, model, inputs):
        """Before training TRL does not round as in training, which then does not start at log 2."""
        with self.accelerator.autocast():
            return super().compute_ref_log_probs(model, inputs)
