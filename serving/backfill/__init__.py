"""Every stored listing classified again: restartable at any moment, each listing once, on one machine or many."""
