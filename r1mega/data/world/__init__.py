"""The tiny world: everything a recipe learns from in minutes, made from a seed.

    languages     two languages for one thought: words in Latin letters, or Chinese characters
    problem       what a problem of any family can do
    numbers       add, subtract, countdown          (domain math)
    logic         order, truth                      (domain logic)
    letters       count, letter, reverse            (domain code)
    families      all of them by name
    documents     how unreliable the documents about them are
    general       greetings, self-description, facts, polite requests, unsafe requests and their safe look-alikes
    preferences   the published rule of what is preferred, and pairs and verdicts made by it

The task plugin `tiny_world` puts them together. Pure Python, no dependency.
"""
