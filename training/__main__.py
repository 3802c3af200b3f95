"""`python -m training …` and `torchrun -m training …`: the train verb alone."""

from training.commands import train
from vision.commands import run_command

if __name__ == "__main__":
    run_command(train)
