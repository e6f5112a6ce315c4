"""The recipe of the bundled checkpoint: corpus, objective, optimiser, training, evaluation."""
