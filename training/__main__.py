"""`python -m training …` and `torchrun -m training …`: the train verb alone."""

from training.cli.train import train
from vision.runtime.cli import run_command

if __name__ == "__main__":
    run_command(train)
