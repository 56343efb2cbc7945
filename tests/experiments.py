"""What the model is worth, and what each part of it is for; prints two tables in Markdown.

    python tests/experiments.py [--data FILE]

The first table compares the loss on held-out names with that of counting. The second takes
one part of the model away at a time, or puts a simpler one in its place: always by replacing
a line or two of Part I from outside, so that you can do the same.
"""

import argparse
import collections
import math
import multiprocessing
import random
import statistics
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import microgpt  # noqa: E402
from microgpt import BOS, Value  # noqa: E402

SEEDS = (1, 2, 3)


def load(path):
    """The documents as the program splits them up: for training, and held out."""
    data = microgpt.Data(path, seed=42, val_fraction=0.1)
    return data.train, data.held_out[:500], data.vocab


# ---- counting ----------------------------------------------------------------------------


class Counts:
    """Predicts a character from the few before it, by how often it followed them.

    Rare contexts say little, so each count is filled up with what the next shorter context
    predicts, as if that had been seen `strength` times more.
    """

    def __init__(self, docs, vocab, length, strength):
        self.vocab = vocab
        self.length = length
        self.strength = strength
        self.tables = [collections.defaultdict(collections.Counter) for _ in range(length + 1)]
        for doc in docs:
            text = BOS * length + doc + BOS
            for place in range(length, len(text)):
                for n, table in enumerate(self.tables):
                    table[text[place - n : place]][text[place]] += 1

    def probability(self, before, char):
        p = 1 / len(self.vocab)
        for n, table in enumerate(self.tables):
            seen = table[before[len(before) - n :]]
            p = (seen[char] + self.strength * p) / (sum(seen.values()) + self.strength)
        return p

    def loss(self, docs):
        """The mean loss over all predictions for some documents, in nats."""
        losses = []
        for doc in docs:
            text = BOS * self.length + doc + BOS
            for place in range(self.length, len(text)):
                before = text[place - self.length : place]
                losses.append(-math.log(self.probability(before, text[place])))
        return statistics.fmean(losses)


def counted(train, held_out, vocab, length):
    """The held-out loss of counting, with the strength that suits names put aside."""
    known, aside = train[: len(train) * 9 // 10], train[len(train) * 9 // 10 :]
    strengths = (0.1, 0.3, 1, 2, 4, 8, 16, 32)
    losses = {s: Counts(known, vocab, length, s).loss(aside) for s in strengths}
    best = min(losses, key=losses.get)
    return Counts(train, vocab, length, best).loss(held_out)


# ---- the model, whole and in parts -------------------------------------------------------


class GradientDescent:
    """In place of Adam: a step along the gradient itself."""

    def __init__(self, params):
        self.params = params
        self.step = 0

    def update(self, rate):
        self.step += 1
        for p in self.params:
            p.data -= rate * p.grad


def no_note(x, *_):
    return [Value(0.0) for _ in x]


def gpt_without_residuals(model, token, position, cache):
    x = microgpt.rmsnorm(microgpt.add(model['wte'][token], model['wpe'][position]))
    for layer, layer_cache in zip(model['layers'], cache):
        x = microgpt.attention(microgpt.rmsnorm(x), layer, layer_cache)
        x = microgpt.mlp(microgpt.rmsnorm(x), layer)
    return microgpt.linear(x, model['lm_head'])


def gpt_without_positions(model, token, position, cache):
    x = microgpt.rmsnorm(model['wte'][token])
    for layer, layer_cache in zip(model['layers'], cache):
        x = microgpt.add(x, microgpt.attention(microgpt.rmsnorm(x), layer, layer_cache))
        x = microgpt.add(x, microgpt.mlp(microgpt.rmsnorm(x), layer))
    return microgpt.linear(x, model['lm_head'])


WHOLE = 'the whole model'
PARTS = {  # what is taken away: where it stands, its name there, and what replaces it
    WHOLE: None,
    'without attention': (microgpt, 'attention', no_note),
    'without the MLP': (microgpt, 'mlp', no_note),
    'without relu': (Value, 'relu', lambda self: self),
    'without residual additions': (microgpt, 'gpt', gpt_without_residuals),
    'without norms': (microgpt, 'rmsnorm', lambda x: x),
    'without positions': (microgpt, 'gpt', gpt_without_positions),
    'with one head': None,
    'with plain gradient descent': (microgpt, 'Adam', GradientDescent),
}


def trained_loss(job):
    """The held-out loss of a model that has been trained as a job says."""
    path, part, steps, rate, seed = job
    train, held_out, vocab = load(path)
    config = microgpt.Config(n_head=1) if part == 'with one head' else microgpt.Config()
    model = microgpt.new_model(config, len(vocab), random.Random(seed))
    params = microgpt.parameters(model)

    def tokens(doc):
        return microgpt.encode(doc[: config.block_size], vocab)

    def loss_at(step):
        doc = train[step % len(train)]
        return microgpt.finite_loss(model, config, tokens(doc))

    def rate_at(step):
        return rate * (1 - step / steps)

    with mock.patch.object(*PARTS[part]) if PARTS[part] else mock.MagicMock():
        for _ in microgpt.train(microgpt.Adam(params), loss_at, rate_at, steps):
            pass
        nats = predictions = 0
        for doc in held_out:
            n = microgpt.n_predictions(tokens(doc), config)
            nats += microgpt.finite_loss(model, config, tokens(doc)).data * n
            predictions += n
    return nats / predictions


def spread(losses):
    """The mean of some losses, and how far they are apart."""
    return f'{statistics.fmean(losses):.2f} ({min(losses):.2f} to {max(losses):.2f})'


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', default=str(ROOT / 'input.txt'))
    path = parser.parse_args().data
    train, held_out, vocab = load(path)
    pool = multiprocessing.Pool()

    long = [(path, WHOLE, steps, 0.01, 1) for steps in (20_000, 5000)]
    long = pool.map_async(trained_loss, long, chunksize=1)
    descent = 'with plain gradient descent'
    rates = (0.03, 0.1, 0.3, 1.0, 3.0)
    tried = pool.map_async(trained_loss, [(path, descent, 1000, rate, 1) for rate in rates])
    adam = [part for part in PARTS if part != descent]
    jobs = [(path, part, 1000, 0.01, seed) for part in adam for seed in SEEDS]
    losses = pool.map_async(trained_loss, jobs, chunksize=1)

    print('| predicted by | loss on held-out names |\n|---|---|')
    print(f'| guessing evenly | {math.log(len(vocab)):.2f} |')
    names = ('letter frequencies', 'counted pairs', 'counted triples', 'counted quadruples')
    for length, name in enumerate(names):
        print(f'| {name} | {counted(train, held_out, vocab, length):.2f} |', flush=True)
    losses = losses.get()
    after = {part: losses[i * len(SEEDS) :][: len(SEEDS)] for i, part in enumerate(adam)}
    best = min(zip(tried.get(), rates))[1]
    after[descent] = pool.map(trained_loss, [(path, descent, 1000, best, s) for s in SEEDS])
    most, more = long.get()
    print(f'| this model after 1,000 steps | {statistics.fmean(after[WHOLE]):.2f} |')
    print(f'| after 5,000 steps | {more:.2f} |\n| after 20,000 steps | {most:.2f} |\n')
    print(f'| after 1,000 steps | loss on held-out names, {len(SEEDS)} seeds |\n|---|---|')
    for part in PARTS:
        note = f' at its best rate, {best}' if part == descent else ''
        print(f'| {part}{note} | {spread(after[part])} |')
    pool.terminate()


if __name__ == '__main__':
    main()
