"""The protocol as a model small enough to be searched to the end: every order of every step, with every fault."""
