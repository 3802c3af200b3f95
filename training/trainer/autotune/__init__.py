"""Settings that suit a machine and a data set, found by measuring: learning rates, batch sizes, data loader."""
