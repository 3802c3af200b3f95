"""Instructions of the Dockerfile's stages."""

import shlex

from scripts.try_dockerfile import needed, read_stages

STAGES = read_stages()


def find_last_value(stage, instruction):
    """Return the last value of an instruction in a stage or its base."""
    for made in reversed(needed(STAGES, stage)):
        if made.name == stage or made.name == STAGES[stage].base:
            for name, value in reversed(made.lines):
                if name == instruction:
                    return value
    return None


def read_environment(stage):
    found = {}
    for made in needed(STAGES, stage):
        if made.name in (stage, STAGES[stage].base):
            for word in (word for name, value in made.lines if name == "ENV" for word in shlex.split(value)):
                found[word.partition("=")[0]] = word.partition("=")[2]
    return found
