"""`python -m training …` and `torchrun -m training …`: the train verb alone."""

from training.cli.train import train_app
from vision.runtime.cli import run_app

if __name__ == "__main__":
    run_app(train_app)
