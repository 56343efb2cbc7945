"""How fast microgpt is, beside the textbook graph on the same Python; prints JSON.

    python tests/benchmark.py [--data FILE] [--steps N]

The textbook graph is the one that people run after an introduction: a node for
each binary operation, with __slots__ and tuples, the builtin sum (which begins
at 0), a recursive topological sort, and a plain training loop. It stands here
as a class of its own, trains on the same documents from the same parameters,
and has to arrive at the same losses. The two take turns, a few steps each; all
times are medians.

Python's collector of cyclic garbage walks through the textbook's large graphs
again and again, and finds nothing. The program switches it off, the textbook
does not; how much of the difference comes from that alone, a second run with it
off on both sides tells.

The floor is the bare arithmetic of a step, on one object per number as in a
Value, but without any graph: the products and sums of all matrices, the
gradients into each number, and Adam.
"""

import argparse
import gc
import itertools
import json
import math
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from operator import mul
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import microgpt  # noqa: E402

TURN = 5  # how many steps a side makes in its turn
SIZES = {'default': microgpt.Config(), 'n_embd 32, n_layer 2': microgpt.Config(2, 32)}


# ---- the textbook graph ------------------------------------------------------


class Node:
    """The textbook's value: one operation, the nodes it came from, the slopes."""

    __slots__ = ('data', 'grad', 'parents', 'slopes')

    def __init__(self, data, parents=(), slopes=()):
        self.data = data
        self.grad = 0.0
        self.parents = parents
        self.slopes = slopes

    def __add__(self, other):
        other = other if isinstance(other, Node) else Node(other)
        return Node(self.data + other.data, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        other = other if isinstance(other, Node) else Node(other)
        return Node(self.data * other.data, (self, other), (other.data, self.data))

    def __pow__(self, n):
        return Node(self.data**n, (self,), (n * self.data ** (n - 1),))

    def exp(self):
        return Node(math.exp(self.data), (self,), (math.exp(self.data),))

    def log(self):
        return Node(math.log(self.data), (self,), (1 / self.data,))

    def relu(self):
        return Node(max(0.0, self.data), (self,), (float(self.data > 0),))

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + -other

    def __truediv__(self, other):
        return self * other**-1

    __radd__ = __add__
    __rmul__ = __mul__

    def backward(self):
        order = []
        visited = set()

        def visit(node):
            if node not in visited:
                visited.add(node)
                for parent in node.parents:
                    visit(parent)
                order.append(node)

        visit(self)
        self.grad = 1.0
        for node in reversed(order):
            for parent, slope in zip(node.parents, node.slopes):
                parent.grad += slope * node.grad


def times(matrix, x):
    return [sum(w_i * x_i for w_i, x_i in zip(row, x)) for row in matrix]


def textbook_softmax(scores):
    highest = max(score.data for score in scores)
    exps = [(score - highest).exp() for score in scores]
    together = sum(exps)
    return [e / together for e in exps]


def textbook_norm(x):
    scale = (sum(x_i * x_i for x_i in x) / len(x) + 1e-5) ** -0.5
    return [x_i * scale for x_i in x]


class Textbook:
    """The same GPT on textbook nodes."""

    def __init__(self, start):
        self.start = start
        self.model = {
            name: [[Node(value.data) for value in row] for row in matrix]
            for name, matrix in microgpt.tensors(start.model).items()
        }
        self.params = [
            node for matrix in self.model.values() for row in matrix for node in row
        ]
        self.m = [0.0] * len(self.params)
        self.v = [0.0] * len(self.params)

    def attention(self, x, layer, keys, values):
        config = self.start.config
        size = config.n_embd // config.n_head
        query = times(self.model[f'{layer}.attn_wq'], x)
        keys.append(times(self.model[f'{layer}.attn_wk'], x))
        values.append(times(self.model[f'{layer}.attn_wv'], x))
        mixed = []
        for first in range(0, config.n_embd, size):
            part = range(first, first + size)
            scores = [sum(query[j] * key[j] for j in part) / size**0.5 for key in keys]
            weights = textbook_softmax(scores)
            mixed += [
                sum(w * value[j] for w, value in zip(weights, values)) for j in part
            ]
        return times(self.model[f'{layer}.attn_wo'], mixed)

    def logits(self, token, position, cache):
        model = self.model
        pairs = zip(model['wte'][token], model['wpe'][position])
        x = textbook_norm([a + b for a, b in pairs])
        for i, (keys, values) in enumerate(cache):
            layer = f'layer{i}'
            note = self.attention(textbook_norm(x), layer, keys, values)
            x = [a + b for a, b in zip(x, note)]
            hidden = [
                h.relu() for h in times(model[f'{layer}.mlp_fc1'], textbook_norm(x))
            ]
            x = [a + b for a, b in zip(x, times(model[f'{layer}.mlp_fc2'], hidden))]
        return times(model['lm_head'], x)

    def new_cache(self):
        return [([], []) for _ in range(self.start.config.n_layer)]

    def loss(self, tokens):
        cache = self.new_cache()
        losses = []
        for position in range(min(self.start.config.block_size, len(tokens) - 1)):
            p = textbook_softmax(self.logits(tokens[position], position, cache))
            losses.append(-p[tokens[position + 1]].log())
        return sum(losses) / len(losses)

    def training(self):
        """Training steps without end; yields the losses."""
        for step in itertools.count():
            loss = self.loss(self.start.tokens(step))
            loss.backward()
            rate, n = 0.01 * (1 - step / 1000), step + 1
            for i, p in enumerate(self.params):
                self.m[i] = 0.85 * self.m[i] + 0.15 * p.grad
                self.v[i] = 0.99 * self.v[i] + 0.01 * p.grad**2
                m_hat = self.m[i] / (1 - 0.85**n)
                v_hat = self.v[i] / (1 - 0.99**n)
                p.data -= rate * m_hat / (v_hat**0.5 + 1e-8)
                p.grad = 0.0
            yield loss.data

    def sample(self, rng):
        """The tokens of a document, BOS at the end included."""
        bos = len(self.model['wte']) - 1
        tokens = []
        cache = self.new_cache()
        for position in range(self.start.config.block_size):
            logits = self.logits(tokens[-1] if tokens else bos, position, cache)
            p = textbook_softmax([logit / 0.5 for logit in logits])
            tokens += rng.choices(range(len(p)), weights=[p_i.data for p_i in p])
            if tokens[-1] == bos:
                break
        return tokens


# ---- what is measured --------------------------------------------------------


class Start:
    """Documents and fresh parameters, the same for every side."""

    def __init__(self, data, config=SIZES['default']):
        rng = random.Random(42)
        self.docs = microgpt.load_docs(data)
        self.config = config
        rng.shuffle(self.docs)
        self.vocab = microgpt.vocabulary(self.docs)
        self.model = microgpt.new_model(config, len(self.vocab), rng)
        self.params = microgpt.parameters(self.model)

    def tokens(self, step):
        return microgpt.encode(self.docs[step % len(self.docs)], self.vocab)

    def training(self):
        """Training steps as in Part I, without end; yields the losses."""
        adam = microgpt.Adam(self.params)
        for step in itertools.count():
            loss = microgpt.document_loss(self.model, self.tokens(step))
            loss.backward()
            adam.update(0.01 * (1 - step / 1000))
            microgpt.Value.tape.clear()
            number = loss.data
            del loss  # or its Values would live until the next loss is complete
            yield number

    def sample(self, rng):
        """A name, and how many tokens were drawn for it."""
        name = microgpt.sample(self.model, self.vocab, 0.5, rng)
        return name, min(len(name) + 1, self.config.block_size)


def bare_steps(start):
    """The bare arithmetic of training steps, without a graph and without results."""
    matrices = [
        matrix
        for name, matrix in microgpt.tensors(start.model).items()
        if name not in ('wte', 'wpe')
    ]
    n = len(start.params)
    m, v = [0.0] * n, [0.0] * n
    for step in itertools.count():
        for _ in range(min(start.config.block_size, len(start.tokens(step)) - 1)):
            for matrix in matrices:
                x = [microgpt.Value(0.5) for _ in matrix[0]]
                x_data = [x_i.data for x_i in x]
                for row in matrix:
                    row_data = [w.data for w in row]
                    grad = sum(map(mul, row_data, x_data))
                    for w, x_i in zip(row, x_data):
                        w.grad += x_i * grad
                    for x_i, w in zip(x, row_data):
                        x_i.grad += w * grad
        for i, p in enumerate(start.params):
            g = p.grad
            m[i] = 0.85 * m[i] + 0.15 * g
            v[i] = 0.99 * v[i] + 0.01 * g * g
            p.data -= 1e-9 * (m[i] / 0.5) / ((v[i] / 0.5) ** 0.5 + 1e-8)
            p.grad = 0.0
        yield 0.0


def timed(function, *args):
    began = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - began, result


def turns(sides, rounds, collecting=()):
    """Median seconds of a step of each side, and its losses; sides are generators."""
    seconds = {side: [] for side in sides}
    losses = {side: [] for side in sides}
    for _ in range(rounds):
        for side, steps in sides.items():
            (gc.enable if side in collecting else gc.disable)()
            for _ in range(TURN):
                one, loss = timed(next, steps)
                seconds[side].append(one)
                losses[side].append(loss)
    gc.enable()
    return {side: statistics.median(found) for side, found in seconds.items()}, losses


def training(data, rounds, collecting):
    start = Start(data)
    sides = {'textbook': Textbook(start).training(), 'microgpt': start.training()}
    seconds, losses = turns(sides, rounds, collecting)
    differences = [abs(a - b) / a for a, b in zip(*losses.values())]
    assert max(differences) < 1e-9, 'the losses differ: this is no yardstick'
    return seconds


def floor(data, rounds):
    """Our step as a multiple of its bare arithmetic, and the latter in milliseconds."""
    sides = {'microgpt': Start(data).training(), 'bare': bare_steps(Start(data))}
    seconds, _ = turns(sides, 2 * rounds)
    return seconds['microgpt'] / seconds['bare'], 1000 * seconds['bare']


def sampling(data):
    """Tokens per second of both sides, over all tokens of thirty names."""
    start = Start(data)
    textbook = Textbook(start)
    seconds = {'textbook': 0.0, 'microgpt': 0.0}
    tokens = {'textbook': 0, 'microgpt': 0}
    for seed in range(30):
        gc.enable()
        one, drawn = timed(textbook.sample, random.Random(seed))
        seconds['textbook'] += one
        tokens['textbook'] += len(drawn)
        gc.disable()
        one, (_, count) = timed(start.sample, random.Random(seed))
        seconds['microgpt'] += one
        tokens['microgpt'] += count
    gc.enable()
    return {side: tokens[side] / seconds[side] for side in seconds}


def against_the_textbook(data, rounds):
    step = training(data, rounds, collecting=['textbook'])
    quiet = training(data, rounds, collecting=[])
    sampled = sampling(data)
    multiple, bare = floor(data, rounds)
    return {
        'ms_per_step': {
            side: round(1000 * seconds, 2) for side, seconds in step.items()
        },
        'training_ratio': round(step['textbook'] / step['microgpt'], 1),
        'training_ratio_without_collector': round(
            quiet['textbook'] / quiet['microgpt'], 1
        ),
        'ms_of_bare_arithmetic': round(bare, 2),
        'step_as_multiple_of_bare_arithmetic': round(multiple, 2),
        'tokens_per_second_sampled': {side: round(n) for side, n in sampled.items()},
        'sampling_ratio': round(sampled['microgpt'] / sampled['textbook'], 1),
    }


def growth(data):
    """Nanoseconds of a step per parameter and token, for two sizes."""
    found = {}
    for name, config in SIZES.items():
        start = Start(data, config)
        runs = []
        gc.disable()
        steps = start.training()
        for step in range(40):
            seconds, _ = timed(next, steps)
            runs.append(
                1e9 * seconds / len(start.params) / (len(start.tokens(step)) - 1)
            )
        gc.enable()
        found[name] = round(statistics.median(runs))
    return found


# ---- whole programs ----------------------------------------------------------


def program_seconds(data, *options):
    """By the clock, from start to end: the program with these options."""
    command = [
        sys.executable,
        str(ROOT / 'microgpt.py'),
        '--data',
        str(data),
        '--samples',
        '0',
    ]
    began = time.perf_counter()
    subprocess.run(
        [*command, *map(str, options)], check=True, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - began


def workers(data):
    """How much faster a batch of 16 is with two workers than with one, by size."""
    found = {}
    for name, config in SIZES.items():
        sizes = ['--n-layer', config.n_layer, '--n-embd', config.n_embd]
        job = [*sizes, '--batch-size', 16, '--val-fraction', 0]
        seconds = {1: [], 2: []}
        for _ in range(3):
            for count in seconds:
                options = [*job, '--workers', count]
                short = program_seconds(data, *options, '--steps', 5)
                long = program_seconds(data, *options, '--steps', 25)
                seconds[count].append(long - short)
        one, two = map(statistics.median, seconds.values())
        found[name] = round(one / two, 2)
    return found


def peak(data, job, n):
    """The peak memory, in MiB, of this process when it has done a job n times."""
    start = Start(data)
    if job == 'names sampled':
        rng = random.Random(1)
        for _ in range(n):
            start.sample(rng)
    else:
        side = Textbook(start) if job == 'textbook steps' else start
        for _ in zip(range(n), side.training()):
            pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(data):
    """The peak memory of several jobs, each in a process of its own."""
    jobs = [
        ('textbook steps', 20),
        ('microgpt steps', 20),
        ('microgpt steps', 400),
        ('names sampled', 100),
        ('names sampled', 10_000),
    ]
    found = {}
    for job, n in jobs:
        command = [
            sys.executable,
            __file__,
            '--data',
            data,
            '--peak',
            job,
            '--steps',
            str(n),
        ]
        result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found[f'{n} {job}'] = round(float(result.stdout), 1)
    return found


# ---- for comparing languages -------------------------------------------------


def median_ms(function, times=7):
    return round(1000 * statistics.median(timed(function)[0] for _ in range(times)), 2)


def primitives():
    rng = random.Random(42)

    def thousand_operations():
        microgpt.Value.tape.clear()
        value = leaf = microgpt.Value(1.0)
        for _ in range(500):
            value = value * 0.999 + leaf
        value.backward()

    return {
        'random_1m': median_ms(lambda: [rng.random() for _ in range(1_000_000)], 5),
        'gauss_100k': median_ms(lambda: [rng.gauss(0, 1) for _ in range(100_000)], 5),
        'value_backward_1k': median_ms(thousand_operations, 51),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', default=str(ROOT / 'input.txt'))
    parser.add_argument('--steps', type=int, default=50, help='steps of each side')
    parser.add_argument('--peak', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(peak(args.data, args.peak, args.steps))
        return
    used = memory(args.data)  # first, for processes count the peak of their parent
    figures = {
        'python': f'{platform.python_implementation()} {platform.python_version()}',
        **against_the_textbook(args.data, max(1, args.steps // TURN)),
        'ns_per_parameter_and_token': growth(args.data),
        'speed_of_2_workers_on_16_documents': workers(args.data),
        'peak_memory_mib': used,
        'ms_for_comparing_languages': primitives(),
    }
    print(json.dumps(figures, indent=1))


if __name__ == '__main__':
    main()
