"""gradlint says, before a training run, whether a model's gradients will explode or vanish, where, why, and what to change."""
