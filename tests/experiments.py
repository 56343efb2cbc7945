"""What the model is worth, and what each part is for; prints two tables.

    python3 tests/experiments.py [--table worth | --table parts [--long]] [--data FILE]

The first table compares the loss on held-out names with that of counting. The
second takes one part of the model away at a time, or puts a simpler one in its
place: always by changing a line or two in the text of Part I, so that you can
do the same in the file. What took 1,000 steps is the mean of three seeds, with
the lowest and the highest behind it in the second table; in the first table,
the long runs have one seed, for time. Both take some minutes; with --long, the
second has also what comes out after 20,000 steps at a rate of 0.003, with three
seeds, which takes an hour on two cores.
"""

import argparse
import collections
import gc
import math
import multiprocessing
import random
import statistics
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import microgpt  # noqa: E402
from microgpt import BOS  # noqa: E402

SEEDS = (1, 2, 3)
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)  # of plain gradient descent


def load(path):
    """The documents as the program splits them up: for training, and held out."""
    data = microgpt.Data(path, seed=42, val_fraction=0.1)
    return data.train, data.held_out[:500], data.vocab


# ---- counting ----------------------------------------------------------------


class Counts:
    """Predicts a character from the few before it, by how often it followed them.

    Rare contexts say little, so each count is filled up with what the next
    shorter context predicts, as if that had been seen `strength` times more.
    """

    def __init__(self, docs, vocab, length, strength):
        self.vocab = vocab
        self.length = length
        self.strength = strength
        self.tables = [
            collections.defaultdict(collections.Counter) for _ in range(length + 1)
        ]
        for doc in docs:
            text = BOS * length + doc + BOS
            for place in range(length, len(text)):
                for n, table in enumerate(self.tables):
                    table[text[place - n : place]][text[place]] += 1

    def size(self):
        """How many different counts the tables hold, those of shorter contexts too."""
        return sum(len(seen) for table in self.tables for seen in table.values())

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
    """The held-out loss of counting, with the strength that suits names put aside.

    Second, how many counts it takes.
    """
    known, aside = train[: len(train) * 9 // 10], train[len(train) * 9 // 10 :]
    strengths = (0.1, 0.3, 1, 2, 4, 8, 16, 32)
    losses = {s: Counts(known, vocab, length, s).loss(aside) for s in strengths}
    best = min(losses, key=losses.get)
    counts = Counts(train, vocab, length, best)
    return counts.loss(held_out), counts.size()


# ---- the model, whole and in parts -------------------------------------------


WHOLE = 'the whole model'
DESCENT = 'with plain gradient descent'
ATTENTION = 'multi_head(rmsnorm(x), layer, n_head, keys, values)'
CHECK = "assert lengths == [position] * len(model['layers']), problem"
MLP = 'mlp(rmsnorm(x), layer)'
PARTS = {  # what stands in Part I, and what to put there: try it in the file
    WHOLE: [],
    'without attention': [(f'x = add(x, {ATTENTION})', 'pass'), (CHECK, 'pass')],
    'without the MLP': [(f'x = add(x, {MLP})', 'pass')],
    'without relu': [('score.relu() for', 'score for')],
    'without residual additions': [
        (f'add(x, {ATTENTION})', ATTENTION),
        (f'add(x, {MLP})', MLP),
    ],
    'without norms': [('return [x_i / size for x_i in x]', 'return x')],
    'without positions': [("model['wpe'][position]", "model['wpe'][0]")],
    'with one head': [('n_head: int = 4', 'n_head: int = 1')],
    DESCENT: [
        ('p.data -= rate * m_hat / (math.sqrt(v_hat) + eps)', 'p.data -= rate * g')
    ],
}


def changed(part):
    """microgpt with one of its parts changed, as a module of its own."""
    source = (ROOT / 'microgpt.py').read_text('utf-8')
    for old, new in PARTS[part]:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    module = types.ModuleType('changed')
    exec(source, module.__dict__)
    return module


def trained_loss(job):
    """The held-out loss, in nats a token, of a model that was trained as a job says."""
    path, part, steps, rate, seed = job
    gc.disable()  # as the program does
    train, held_out, vocab = load(path)
    variant = changed(part)
    config = variant.Config()
    model = variant.new_model(config, len(vocab), random.Random(seed))

    def loss_of(doc):
        return variant.document_loss(model, variant.encode(doc, vocab))

    try:
        adam = variant.Adam(variant.parameters(model))
        for step in range(steps):
            loss = loss_of(train[step % len(train)])
            loss.backward()
            adam.update(rate * (1 - step / steps))
            variant.Value.tape.clear()
            del loss  # or its Values would live until the next loss is complete
        nats = predictions = 0
        for doc in held_out:
            n = min(len(doc) + 1, config.block_size)
            nats += loss_of(doc).data * n
            predictions += n
            variant.Value.tape.clear()
        return nats / predictions
    except (ValueError, ArithmeticError):  # a rate so high that numbers overflow
        return math.inf


def spread(losses):
    """The mean of some losses, and how far they are apart."""
    return f'{statistics.fmean(losses):.2f} ({min(losses):.2f} to {max(losses):.2f})'


class Trainings:
    """Models that are trained in processes side by side."""

    def __init__(self, path):
        self.path = path
        self.pool = multiprocessing.Pool()

    def start(self, part, steps=1000, rates=(0.01,), seeds=SEEDS):
        """Train in the background; get() waits for the held-out losses."""
        pairs = [(rate, seed) for rate in rates for seed in seeds]
        jobs = [(self.path, part, steps, rate, seed) for rate, seed in pairs]
        return self.pool.map_async(trained_loss, jobs, chunksize=1)


def print_worth(trainings):
    """The table of what the model is worth, beside counting."""
    longest = trainings.start(WHOLE, 20_000, seeds=SEEDS[:1])
    longer = trainings.start(WHOLE, 5000, seeds=SEEDS[:1])
    short = trainings.start(WHOLE)
    train, held_out, vocab = load(trainings.path)
    print('| predicted by | loss on held-out names |\n|---|---|')
    print(f'| guessing evenly | {math.log(len(vocab)):.2f} |')
    counts = 'letters', 'pairs', 'triples', 'quadruples'
    for length, name in enumerate(counts):
        loss, size = counted(train, held_out, vocab, length)
        print(f'| counted {name} ({size:,} counts) | {loss:.2f} |', flush=True)
    print(f'| this model after 1,000 steps | {statistics.fmean(short.get()):.2f} |')
    print(f'| after 5,000 steps | {longer.get()[0]:.2f} |')
    print(f'| after 20,000 steps | {longest.get()[0]:.2f} |')


def print_parts(trainings, is_long):
    """The table of what each part is for."""
    tried = trainings.start(DESCENT, rates=RATES, seeds=SEEDS[:1])
    short = {part: trainings.start(part) for part in PARTS if part != DESCENT}
    long = {}
    if is_long:
        long = {part: trainings.start(part, 20_000, [0.003]) for part in short}
    best = min(zip(tried.get(), RATES))[1]
    short[DESCENT] = trainings.start(DESCENT, rates=[best])
    column = ' after 20,000, rate 0.003 |' if is_long else ''
    print(f'| loss on held-out names | after 1,000 steps |{column}')
    print('|---' * (3 if is_long else 2) + '|')
    for part, losses in short.items():
        note = f' at its best rate, {best}' if part == DESCENT else ''
        row = f'| {part}{note} | {spread(losses.get())} |'
        if is_long:
            row += f' {spread(long[part].get())} |' if part in long else ' |'
        print(row, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', default=str(ROOT / 'input.txt'))
    parser.add_argument('--table', choices=['worth', 'parts'])
    parser.add_argument('--long', action='store_true')
    args = parser.parse_args()
    trainings = Trainings(args.data)
    if args.table != 'parts':
        print_worth(trainings)
    if not args.table:
        print()
    if args.table != 'worth':
        print_parts(trainings, args.long)
    trainings.pool.terminate()


if __name__ == '__main__':
    main()
