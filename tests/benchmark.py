"""How fast microgpt is, beside what people usually run; prints README's table.

    python3 tests/benchmark.py [--data FILE] [--turns N]

The usual graph has a node for each operation on one or two numbers, a recursive
sort, and Python's collector of cyclic garbage at work. It stands here as a
program of its own (`Node` and `Usual`), trains on the same documents from the
same parameters, and has to arrive at the same losses. The two take turns, a few
steps each; all times are medians.

The collector walks through the usual large graphs again and again, and finds
nothing. How much of the difference comes from that alone, a second run with it
off on both sides tells.
"""

import argparse
import gc
import itertools
import math
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import microgpt  # noqa: E402

TURN = 5  # how many steps a side makes in its turn


# ---- what people usually run -------------------------------------------------


class Node:
    """One operation: its result, the nodes that it came from, and their slopes."""

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


def softmax(scores):
    highest = max(score.data for score in scores)
    exps = [(score - highest).exp() for score in scores]
    total = sum(exps)
    return [e / total for e in exps]


def rmsnorm(x):
    scale = (sum(x_i * x_i for x_i in x) / len(x) + 1e-5) ** -0.5
    return [x_i * scale for x_i in x]


class Usual:
    """The default GPT on such nodes, from the same parameters."""

    def __init__(self, ours):
        self.tokens = ours.tokens
        self.model = {
            name: [[Node(value.data) for value in row] for row in matrix]
            for name, matrix in microgpt.tensors(ours.model).items()
        }
        matrices = self.model.values()
        self.params = [p for matrix in matrices for row in matrix for p in row]

    def logits(self, token, position, keys, values):
        model, size = self.model, 4
        x = [a + b for a, b in zip(model['wte'][token], model['wpe'][position])]
        x = rmsnorm(x)
        normed = rmsnorm(x)
        query = times(model['layer0.attn_wq'], normed)
        keys.append(times(model['layer0.attn_wk'], normed))
        values.append(times(model['layer0.attn_wv'], normed))
        found = []
        for first in range(0, len(x), size):
            part = range(first, first + size)
            scores = [sum(query[j] * key[j] for j in part) / size**0.5 for key in keys]
            weights = softmax(scores)
            found += [sum(w * v[j] for w, v in zip(weights, values)) for j in part]
        x = [a + b for a, b in zip(x, times(model['layer0.attn_wo'], found))]
        hidden = [h.relu() for h in times(model['layer0.mlp_fc1'], rmsnorm(x))]
        x = [a + b for a, b in zip(x, times(model['layer0.mlp_fc2'], hidden))]
        return times(model['lm_head'], x)

    def training(self):
        """Training steps without end; yields the losses."""
        m, v = [0.0] * len(self.params), [0.0] * len(self.params)
        for step in itertools.count():
            tokens, keys, values, losses = self.tokens(step), [], [], []
            for position, (token, target) in enumerate(zip(tokens, tokens[1:])):
                p = softmax(self.logits(token, position, keys, values))
                losses.append(-p[target].log())
            loss = sum(losses) / len(losses)
            loss.backward()
            for i, p in enumerate(self.params):
                m[i] = 0.85 * m[i] + 0.15 * p.grad
                v[i] = 0.99 * v[i] + 0.01 * p.grad**2
                m_hat = m[i] / (1 - 0.85 ** (step + 1))
                v_hat = v[i] / (1 - 0.99 ** (step + 1))
                p.data -= 0.01 * m_hat / (v_hat**0.5 + 1e-8)
                p.grad = 0.0
            yield loss.data

    def sample(self, rng):
        """How many tokens a new document has, BOS at the end included."""
        token = bos = len(self.model['wte']) - 1
        keys, values = [], []
        for position in range(16):
            logits = self.logits(token, position, keys, values)
            p = softmax([logit / 0.5 for logit in logits])
            token = rng.choices(range(len(p)), weights=[p_i.data for p_i in p])[0]
            if token == bos:
                break
        return position + 1


# ---- ours --------------------------------------------------------------------


class Ours:
    """Part I on documents from a file."""

    def __init__(self, data):
        rng = random.Random(42)
        self.docs = [doc[:15] for doc in microgpt.load_docs(data)]
        rng.shuffle(self.docs)
        self.vocab = microgpt.vocabulary(self.docs)
        self.model = microgpt.new_model(microgpt.Config(), len(self.vocab), rng)

    def tokens(self, step):
        return microgpt.encode(self.docs[step % len(self.docs)], self.vocab)

    def training(self):
        """The loop of Part I's main, without end; yields the losses."""
        adam = microgpt.Adam(microgpt.parameters(self.model))
        for step in itertools.count():
            loss = microgpt.document_loss(self.model, self.tokens(step))
            loss.backward()
            adam.update(rate=0.01)
            microgpt.Value.tape.clear()
            number = loss.data
            del loss
            yield number

    def sample(self, rng):
        """How many tokens a new document has, BOS at the end included."""
        text = microgpt.sample(self.model, self.vocab, 0.5, rng)
        return min(len(text) + 1, 16)


# ---- measuring ---------------------------------------------------------------


def timed(function, *args):
    began = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - began, result


def step_seconds(data, turns, collector):
    """The median time of a step: of the usual program, and of ours."""
    ours = Ours(data)
    sides = [Usual(ours).training(), ours.training()]
    seconds, losses = [[], []], [[], []]
    (gc.enable if collector else gc.disable)()
    for _ in range(turns):
        for i, side in enumerate(sides):
            for _ in range(TURN):
                one, loss = timed(next, side)
                seconds[i].append(one)
                losses[i].append(loss)
    gc.enable()
    assert max(abs(a - b) for a, b in zip(*losses)) < 1e-9, 'this is no yardstick'
    return map(statistics.median, seconds)


def letters_per_second(data):
    """Of the usual program, and of ours, for the same thirty names."""
    ours = Ours(data)
    found = []
    for side in (Usual(ours), ours):
        results = [timed(side.sample, random.Random(seed)) for seed in range(30)]
        found.append(sum(n for _, n in results) / sum(s for s, _ in results))
    return found


def program_seconds(*options):
    """How long the program takes with these options."""
    command = [sys.executable, ROOT / 'microgpt.py', *options]
    quiet = {'check': True, 'stderr': subprocess.DEVNULL}
    return timed(lambda: subprocess.run(list(map(str, command)), **quiet))[0]


def gain_of_workers(data):
    """How much faster steps of 16 documents are with two workers than with one."""
    job = ['--data', data, '--batch-size', 16, '--val-fraction', 0, '--samples', 0]
    seconds = {1: [], 2: []}
    for _ in range(3):
        for count in seconds:
            options = [*job, '--workers', count, '--steps']
            short, long = (program_seconds(*options, steps) for steps in (5, 25))
            seconds[count].append(long - short)
    one, two = map(statistics.median, seconds.values())
    return one / two


def peaks(data):
    """The peak memory in MiB after 20 steps: of the usual program, and of ours."""
    for name in ('usual', 'ours'):
        command = [sys.executable, __file__, '--data', data, '--peak', name]
        yield float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def print_peak(data, name):
    """Train for 20 steps and print the peak memory of this process."""
    ours = Ours(data)
    side = Usual(ours) if name == 'usual' else ours
    for _ in zip(range(20), side.training()):
        pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', default=str(ROOT / 'input.txt'))
    parser.add_argument('--turns', type=int, default=10)
    parser.add_argument('--peak', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print_peak(args.data, args.peak)
        return
    memory = list(peaks(args.data))  # first, for processes count their parent's peak
    usual, ours = step_seconds(args.data, args.turns, collector=True)
    quiet_usual, quiet_ours = step_seconds(args.data, args.turns, collector=False)
    slow, fast = letters_per_second(args.data)
    print('| | the usual graph | microgpt | |\n|---|---|---|---|')
    times = f'{1000 * usual:.0f} ms', f'{1000 * ours:.1f} ms'
    row('a training step', *times, usual / ours)
    times = f'{1000 * quiet_usual:.0f} ms', f'{1000 * quiet_ours:.1f} ms'
    row('the same, collector off', *times, quiet_usual / quiet_ours)
    row('letters sampled in a second', f'{slow:.0f}', f'{fast:.0f}', fast / slow)
    row('16 names a step: two workers, beside one', '', '', gain_of_workers(args.data))
    print(f'| peak memory | {memory[0]:.0f} MiB | {memory[1]:.0f} MiB | |')


def row(what, usual, ours, gain):
    """Print a row of the table."""
    print(f'| {what} | {usual} | {ours} | {gain:.1f} times as fast |')


if __name__ == '__main__':
    main()
