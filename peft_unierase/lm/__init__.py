"""Running a causal language model: prompt formats, batches, generation, activations, and finding its parts."""
